package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/seed"
)

// Identity is who a guest is to become.
type Identity struct {
	// Seed is what the guest's own seed tells it, and would tell it in a cold
	// boot: instance id and host name (both required), user, keys, password and the
	// cards' addresses, which are brought up with DHCP. Where it has user-data, meta-data
	// or a network configuration of the person's, the guest's cloud-init applies
	// it from the seed's drive, which must be plugged in by then.
	Seed seed.Config
	// MachineID is 32 hexadecimal digits, lower case: see [NewMachineID].
	MachineID string
	HostKeys  HostKeys
	// InUse: the guest is a copy of one that somebody used, whose accounts stay as they
	// are but for those that Seed names.
	InUse bool
	// Plug, if not nil, is called when the guest has its new name and before its
	// cards are waited for: it plugs in the cards and the seed, or the cards' cables.
	// Without it they must be there, or come while Renew is under way, and the guest may
	// ask for an address under its old name. That of its card it uses in any
	// case.
	Plug func(context.Context) error
	// NetworkTimeout is how long each of the cards may take to get an address;
	// 0 is 30 s. A card that gets none is an error.
	NetworkTimeout time.Duration
}

// Report is what a guest says of itself. It has the fields of api.Identity.
type Report struct {
	Hostname  string
	MachineID string
	Addresses []string // without loopback and link-local ones
	HostKeys  []string // of its SSH server, as in known_hosts without the host
	// ServerUnknown: the guest has not found the SSH server that it would have to tell of
	// its new keys, so that one which runs may go on with those of the template: see
	// CheckServed.
	ServerUnknown bool
	User          string // who has the keys and the password; "" if it does not say
	At            time.Time
}

// Sentinels of [Renew].
var (
	// ErrMismatch: the guest is not who it was to become; the wrapping error
	// says in what.
	ErrMismatch = errors.New("the guest has not become who it should be")
	// ErrUserData: the guest has its identity, but what its user-data asked for did
	// not succeed.
	ErrUserData = errors.New("the guest has its identity, but its user-data was not carried out")
)

// NewMachineID makes one up.
func NewMachineID() string {
	// As systemd does: a UUID of version 4.
	id := []byte(nonce())
	id[12] = '4'
	id[16] = "89ab"[id[16]&3]
	return string(id)
}

func (id Identity) validate() error {
	if err := id.Seed.Validate(); err != nil {
		return err
	}
	if id.Seed.Hostname == "" {
		return errors.New("an identity without a host name")
	}
	if len(id.MachineID) != 32 || strings.Trim(id.MachineID, "0123456789abcdef") != "" {
		return fmt.Errorf("machine-id %q: it has 32 hexadecimal digits", id.MachineID)
	}
	if len(id.HostKeys.ed25519) == 0 || id.HostKeys.ecdsa == nil {
		return errors.New("an identity without SSH host keys")
	}
	return nil
}

// inUse is InUse for the shell.
func (id Identity) inUse() string {
	if id.InUse {
		return "1"
	}
	return ""
}

// byCloudInit reports whether the guest's cloud-init must run for the new
// instance.
func (id Identity) byCloudInit() bool {
	s := id.Seed
	return len(s.UserData) > 0 || len(s.MetaData) > 0 || len(s.NetworkConfig) > 0
}

// hostname is the first label of the host name, which is what a kernel is told.
func (id Identity) hostname() string {
	host, _, _ := strings.Cut(id.Seed.Hostname, ".")
	return host
}

// macs are the cards' addresses as a kernel writes them.
func (id Identity) macs() []string {
	var out []string
	for _, m := range id.Seed.MACs {
		if hw, err := net.ParseMAC(m); err == nil { // Validate has seen it
			out = append(out, hw.String())
		}
	}
	return out
}

func (id Identity) networkTimeout() time.Duration {
	if id.NetworkTimeout > 0 {
		return id.NetworkTimeout
	}
	return 30 * time.Second
}
