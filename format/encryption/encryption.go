// Package encryption is what the drivers of encrypted images have in common:
// their options and their description. Its functions take a prefix, "" or
// "encrypt.", which stands before the names of options; the texts of errors are
// stock QEMU's.
package encryption

import (
	"fmt"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/diskcrypt"
	"github.com/lamina-vm/lamina/format"
)

// Passphrase returns the text of the secret that the option key-secret names.
// The bytes are the caller's to wipe.
func Passphrase(secrets format.Secrets, prefix, id string) ([]byte, error) {
	switch {
	case id == "":
		return nil, &optionError{"Parameter '" + prefix + "key-secret' is required for cipher"}
	case secrets == nil:
		return diskcrypt.Passphrase(nil, id)
	}
	return diskcrypt.Passphrase(secrets.Secret, id)
}

// optionError is about an option. It matches block.ErrUnsupported.
type optionError struct{ text string }

func (e *optionError) Error() string        { return e.text }
func (e *optionError) Is(target error) bool { return target == block.ErrUnsupported }

// Options are the creation options of an image's encryption.
type Options struct {
	diskcrypt.NewOptions
	KeySecret string // the id of the secret with the passphrase
}

// Set takes one option over, spelled without its prefix. It reports whether it
// is one of encryption.
func (o *Options) Set(name, value string) (bool, error) {
	var err error
	switch name {
	case "cipher-alg":
		o.Params.CipherAlg = value
	case "cipher-mode":
		o.Params.CipherMode = value
	case "ivgen-alg":
		o.Params.IVGenAlg = value
	case "ivgen-hash-alg":
		o.Params.IVGenHashAlg = value
	case "hash-alg":
		o.Params.HashAlg = value
	case "key-secret":
		o.KeySecret = value
	case "iter-time":
		o.IterTime, err = parseIterTime(value)
	default:
		return false, nil
	}
	return true, err
}

// parseIterTime reads a time in milliseconds. None is as little as can be.
func parseIterTime(v string) (time.Duration, error) {
	n, err := strconv.ParseUint(v, 0, 64)
	switch {
	case err != nil:
		return 0, &optionError{"Parameter 'iter-time' expects a number"}
	case n > 1<<40:
		return 0, &optionError{fmt.Sprintf("an iter-time of %d milliseconds is longer than anybody waits", n)}
	}
	return max(time.Duration(n)*time.Millisecond, 1), nil
}

// SlotChange reads the options of `amend` that change key slots. openedWith is
// the id of the secret that opened the image.
func SlotChange(opts format.AmendOptions, prefix, openedWith string) (diskcrypt.SlotChange, error) {
	c := diskcrypt.SlotChange{Slot: -1, Force: opts.Force}
	lookUp := func(id string) func() ([]byte, error) {
		return func() ([]byte, error) {
			if opts.Secrets == nil {
				return diskcrypt.Passphrase(nil, id)
			}
			return diskcrypt.Passphrase(opts.Secrets.Secret, id)
		}
	}
	c.Passphrase = lookUp(openedWith)
	hasState := false
	for k, v := range opts.Values {
		if len(k) < len(prefix) || k[:len(prefix)] != prefix {
			continue
		}
		var err error
		switch k[len(prefix):] {
		case "state":
			hasState, c.Active = true, v == "active"
			if v != "active" && v != "inactive" {
				err = &optionError{"Parameter 'state' does not accept value '" + v + "'"}
			}
		case "keyslot":
			c.Slot, err = strconv.ParseInt(v, 0, 64)
			if err == nil && c.Slot == -1 {
				c.Slot = -2 // is given, and out of range
			}
			if err != nil {
				err = &optionError{"Parameter 'keyslot' expects integer"}
			}
		case "new-secret":
			c.NewPassphrase = lookUp(v)
		case "old-secret":
			c.OldPassphrase = lookUp(v)
		case "iter-time":
			c.HasIterTime = true
			c.IterTime, err = parseIterTime(v)
		}
		if err != nil {
			return c, err
		}
	}
	if !hasState {
		return c, &optionError{"Parameter '" + prefix + "state' is missing"}
	}
	return c, nil
}

// LUKSInfo describes a LUKS volume in the order of stock `qemu-img info`.
// extra stands before the cipher mode.
func LUKSInfo(v diskcrypt.VolumeInfo, extra ...format.InfoField) []format.InfoField {
	var list []format.InfoField
	field := func(name, key string, value any) {
		list = append(list, format.InfoField{Name: name, Key: key, Value: value})
	}
	field("ivgen alg", "ivgen-alg", v.IVGenAlg)
	field("hash alg", "hash-alg", v.HashAlg)
	field("cipher alg", "cipher-alg", v.CipherAlg)
	field("uuid", "uuid", v.UUID)
	if v.IVGenAlg == "essiv" {
		field("ivgen hash alg", "ivgen-hash-alg", v.IVGenHashAlg)
	}
	list = append(list, extra...)
	field("cipher mode", "cipher-mode", v.CipherMode)
	var slots []any
	for _, s := range v.Slots {
		slot := []format.InfoField{{Name: "active", Key: "active", Value: s.Active}}
		if s.Active {
			slot = append(slot, format.InfoField{Name: "iters", Key: "iters", Value: s.Iterations})
		}
		slot = append(slot, format.InfoField{Name: "key offset", Key: "key-offset", Value: s.KeyOffset})
		if s.Active {
			slot = append(slot, format.InfoField{Name: "stripes", Key: "stripes", Value: s.Stripes})
		}
		slots = append(slots, slot)
	}
	field("slots", "slots", slots)
	field("payload offset", "payload-offset", v.PayloadOffset)
	field("master key iters", "master-key-iters", v.Iterations)
	return list
}
