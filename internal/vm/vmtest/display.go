package vmtest

import (
	"bytes"
	"crypto/des" //nolint:staticcheck // what VNC's authentication is made of
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"net"
	"os"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// testDisplay: a VNC server greets, asks for its password, takes the right one
// and no other; the password is nowhere that others can read.
func testDisplay(t *testing.T, newDriver maker) {
	const password = "s3cr3t, and more than VNC looks at"
	spec := Spec(t)
	spec.Displays = []vm.Display{{Type: vm.DisplayVNC, Listen: "127.0.0.1", Port: -1, Password: password}}
	m := Start(t, newDriver(t), spec, t.TempDir())
	addr := m.Info().VNC
	if ok, err := viewer(addr, password); err != nil || !ok {
		t.Errorf("the password: %v, %v", ok, err)
	}
	if ok, err := viewer(addr, password[:vm.VNCPasswordLength]); err != nil || !ok {
		t.Errorf("its first letters: %v, %v", ok, err)
	}
	if ok, err := viewer(addr, "another"); err != nil || ok {
		t.Errorf("another password: %v, %v", ok, err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.Info().PID))
	if err != nil || bytes.Contains(cmdline, []byte("s3cr3t")) {
		t.Errorf("the password is on the command line (%v): %q", err, cmdline)
	}
	if s, ok := m.(vm.PasswordSetter); ok {
		if err := s.SetDisplayPassword(t.Context(), vm.DisplayVNC, "changed"); err != nil {
			t.Error(err)
		}
		if ok, err := viewer(addr, "changed"); err != nil || !ok {
			t.Errorf("the changed password: %v, %v", ok, err)
		}
	}
	kill(t, m)
	spec.Displays[0] = vm.Display{Type: vm.DisplayVNC, Listen: "0.0.0.0"}
	if m, err := newDriver(t).Start(t.Context(), spec, t.TempDir()); err == nil {
		kill(t, m)
		t.Error("a display that everybody reaches, without a password, was started")
	}
}

// viewer connects to a VNC server as RFC 6143 has it, and says whether it was
// let in.
func viewer(addr, password string) (bool, error) {
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return false, err
	}
	hello := make([]byte, 12)
	if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "RFB 003.008\n" {
		return false, fmt.Errorf("greeting %q: %w", hello, err)
	}
	if _, err := c.Write(hello); err != nil {
		return false, err
	}
	types := make([]byte, 2) // how many there are, and which
	if _, err := io.ReadFull(c, types); err != nil || types[0] != 1 || types[1] != 2 {
		return false, fmt.Errorf("security types %v, want VNC's authentication alone: %w", types, err)
	}
	if _, err := c.Write([]byte{2}); err != nil {
		return false, err
	}
	challenge := make([]byte, 16)
	if _, err := io.ReadFull(c, challenge); err != nil {
		return false, err
	}
	var key [8]byte
	copy(key[:], password)
	for i := range key {
		key[i] = bits.Reverse8(key[i])
	}
	block, err := des.NewCipher(key[:])
	if err != nil {
		return false, err
	}
	answer := make([]byte, 16)
	block.Encrypt(answer[:8], challenge[:8])
	block.Encrypt(answer[8:], challenge[8:])
	if _, err := c.Write(answer); err != nil {
		return false, err
	}
	result := make([]byte, 4)
	if _, err := io.ReadFull(c, result); err != nil {
		return false, err
	}
	return binary.BigEndian.Uint32(result) == 0, nil
}
