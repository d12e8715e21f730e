package agent

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestNewMachineID(t *testing.T) {
	a, b := NewMachineID(), NewMachineID()
	if a == b {
		t.Errorf("twice the same: %s", a)
	}
	if len(a) != 32 || a[12] != '4' || !strings.ContainsRune("89ab", rune(a[16])) {
		t.Errorf("%s is no random UUID", a)
	}
}

func TestHostKeys(t *testing.T) {
	keys, err := NewHostKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := keys.Public()
	if err != nil {
		t.Fatal(err)
	}
	ed, ec, err := keys.openSSH()
	if err != nil {
		t.Fatal(err)
	}
	for i, private := range []string{ed, ec} {
		signer, err := ssh.ParsePrivateKey([]byte(private))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); got != public[i] {
			t.Errorf("the private key is of %s, the public one is %s", got, public[i])
		}
	}
	other, err := NewHostKeys()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := other.Public(); again[0] == public[0] || again[1] == public[1] {
		t.Error("twice the same keys")
	}
}
