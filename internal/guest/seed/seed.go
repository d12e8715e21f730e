// Package seed makes the NoCloud seed that tells a guest who it is: an ISO
// 9660 volume named "cidata" with meta-data, user-data and network-config.
package seed

import "fmt"

// Config is what the guest is told.
type Config struct {
	InstanceID string // required; a new one makes cloud-init run again
	Hostname   string
	// User is created with sudo rights, and gets the keys and the password.
	// Empty means the image's own default user.
	User string
	// SSHKeys are lines of authorized_keys.
	SSHKeys []string
	// Password, if not empty, is the user's, in the clear; it is hashed
	// before it is written.
	Password string
	// UserData is the user's own user-data (cloud-config, script, MIME
	// multi-part). It is merged with what the fields above ask for and wins
	// where both speak.
	UserData []byte
	// NetworkConfig replaces the default (DHCP on every card).
	NetworkConfig []byte
	// MetaData replaces what is made of InstanceID and Hostname (and the keys,
	// which user-data has too).
	MetaData []byte
	// MACs are the hardware addresses of the machine's cards. They are needed
	// for DHCP on more than one: without them, and with just one, the choice
	// is left to cloud-init, which takes the first card.
	MACs []string
}

// Write makes the seed of c and puts it at path, whole or not at all: it is
// written beside path and renamed.
func Write(path string, c Config) error {
	b, err := Build(c)
	if err != nil {
		return err
	}
	return writeFile(path, b)
}

// Disc returns an ISO 9660 image with one file in its root folder, such as the
// answers for an installer that looks for them on its drives. volume is its
// label, of at most 16 characters; the file's name has at most 64.
func Disc(volume, name string, data []byte) ([]byte, error) {
	if len(volume) > 16 || len(name) > 64 || name == "" {
		return nil, fmt.Errorf("a disc %q with the file %q: the names are too long, or missing", volume, name)
	}
	return buildISO(volume, []file{{name, data}})
}
