package encryption

import "github.com/lamina-vm/lamina/format"

// CipherOptions describes the creation options by which images of every format
// choose their encryption, in the stock tool's order.
func CipherOptions(prefix string) []format.Option {
	return []format.Option{
		{Name: prefix + "cipher-alg", Type: format.TypeString, Help: "Name of encryption cipher algorithm"},
		{Name: prefix + "cipher-mode", Type: format.TypeString, Help: "Name of encryption cipher mode"},
		{Name: prefix + "hash-alg", Type: format.TypeString, Help: "Name of encryption hash algorithm"},
		iterTime(prefix),
		{Name: prefix + "ivgen-alg", Type: format.TypeString, Help: "Name of IV generator algorithm"},
		{Name: prefix + "ivgen-hash-alg", Type: format.TypeString, Help: "Name of IV generator hash algorithm"},
	}
}

// SlotOptions describes the options by which amend changes key slots.
func SlotOptions(prefix string) []format.Option {
	list := []format.Option{
		iterTime(prefix),
		{Name: prefix + "keyslot", Type: format.TypeNumber, Help: "Select a single keyslot to modify explicitly"},
		{Name: prefix + "new-secret", Type: format.TypeString, Help: "New secret to set in the matching keyslots. Empty string to erase"},
		{Name: prefix + "old-secret", Type: format.TypeString, Help: "Select all keyslots that match this password"},
		{Name: prefix + "state", Type: format.TypeString, Help: "Select new state of affected keyslots (active/inactive)"},
	}
	for i := range list {
		list[i].Amendable = true
	}
	return list
}

func iterTime(prefix string) format.Option {
	return format.Option{Name: prefix + "iter-time", Type: format.TypeNumber, Help: "Time to spend in PBKDF in milliseconds"}
}
