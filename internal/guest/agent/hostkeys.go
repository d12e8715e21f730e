package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"

	"golang.org/x/crypto/ssh"
)

// HostKeys are a guest's SSH host keys. They are made on the host, so that it
// knows what to expect of the guest's SSH server before that has answered; the
// private halves are forgotten once the guest has them.
type HostKeys struct {
	ed25519 ed25519.PrivateKey
	ecdsa   *ecdsa.PrivateKey
}

// NewHostKeys makes a key of each kind that does not take long.
func NewHostKeys() (HostKeys, error) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return HostKeys{}, fmt.Errorf("make SSH host keys: %w", err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return HostKeys{}, fmt.Errorf("make SSH host keys: %w", err)
	}
	return HostKeys{ed25519: ed, ecdsa: ec}, nil
}

// Public are the keys as they stand in known_hosts behind the host's name: type
// and key.
func (k HostKeys) Public() ([]string, error) {
	var out []string
	for _, key := range []any{k.ed25519.Public(), &k.ecdsa.PublicKey} {
		pub, err := ssh.NewPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("SSH host keys: %w", err)
		}
		out = append(out, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))))
	}
	return out, nil
}

// openSSH are the private keys in the format of OpenSSH's host keys.
func (k HostKeys) openSSH() (ed, ec string, err error) {
	text := make([]string, 2)
	for i, key := range []any{k.ed25519, k.ecdsa} {
		block, err := ssh.MarshalPrivateKey(key, "")
		if err != nil {
			return "", "", fmt.Errorf("SSH host keys: %w", err)
		}
		text[i] = string(pem.EncodeToMemory(block))
	}
	return text[0], text[1], nil
}

// dropbear are the private keys as dropbear's files hold them: the fields of
// the public key in SSH's encoding (RFC 4251 5), then the secret ones.
func (k HostKeys) dropbear() (ed, ec []byte, err error) {
	var b bytes.Buffer
	putString(&b, []byte(ssh.KeyAlgoED25519))
	putString(&b, k.ed25519) // seed and public key, 32 bytes each
	ed = bytes.Clone(b.Bytes())

	point, err := k.ecdsa.PublicKey.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("SSH host keys: %w", err)
	}
	secret, err := k.ecdsa.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("SSH host keys: %w", err)
	}
	b.Reset()
	putString(&b, []byte(ssh.KeyAlgoECDSA256))
	putString(&b, []byte("nistp256"))
	putString(&b, point)
	putString(&b, mpint(secret))
	return ed, b.Bytes(), nil
}

func putString(b *bytes.Buffer, s []byte) {
	_ = binary.Write(b, binary.BigEndian, uint32(len(s))) // a buffer does not fail
	b.Write(s)
}

// mpint is a positive number without leading zeros, but with one where the
// highest bit would be a sign.
func mpint(secret []byte) []byte {
	n := new(big.Int).SetBytes(secret).Bytes()
	if len(n) > 0 && n[0]&0x80 != 0 {
		n = append([]byte{0}, n...)
	}
	return n
}
