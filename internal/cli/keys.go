package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
)

// keys returns the public keys that a machine lets in: those of --ssh-key or
// the person's own, and this home's key, with which `lamina ssh` always gets
// in.
func (f *machineFlags) keys(a *app, havePassword bool) ([]string, error) {
	var keys, said []string
	for _, k := range f.sshKeys {
		found, err := publicKeys(k)
		if err != nil {
			return nil, err
		}
		keys = append(keys, found...)
	}
	if len(f.sshKeys) == 0 {
		files, found := defaultKeys()
		keys, said = append(keys, found...), append(said, files...)
	}
	if !f.noOwnKey {
		own, err := ownKey()
		switch {
		case errors.Is(err, exec.ErrNotFound):
			a.note("lamina: ssh-keygen is not installed (package openssh-client), so this home has no key of its own for lamina ssh")
		case err != nil:
			return nil, err
		default:
			keys, said = append(keys, own), append(said, "this home's own")
		}
	}
	switch {
	case len(keys) == 0 && !havePassword:
		a.note("lamina: no SSH key and no password: only the image's own accounts can log in, on lamina console; see --ssh-key and --password")
	case len(f.sshKeys) == 0 && len(said) > 0:
		a.note("SSH keys that may log in: %s", strings.Join(said, ", "))
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// publicKeys reads the lines of a public key file, or takes a key as it is.
func publicKeys(arg string) ([]string, error) {
	if isPublicKey(arg) {
		return []string{strings.TrimSpace(arg)}, nil
	}
	b, err := readSmall(arg)
	if err != nil {
		return nil, fmt.Errorf("--ssh-key: %w", err)
	}
	if strings.Contains(string(b), "PRIVATE KEY-----") {
		return nil, fmt.Errorf("--ssh-key: %s is a private key, which must never leave this host; give the public one, %s.pub", arg, arg)
	}
	var keys []string
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !isPublicKey(line) {
			return nil, fmt.Errorf("--ssh-key: %s, line %d: not a public key of SSH; expected \"ssh-ed25519 AAAA...\"", arg, i+1)
		}
		keys = append(keys, line)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("--ssh-key: %s holds no key", arg)
	}
	return keys, nil
}

// isPublicKey says whether a line is one of authorized_keys without options.
func isPublicKey(line string) bool {
	kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if strings.ContainsAny(line, "\n\r") {
		return false
	}
	known := strings.HasPrefix(kind, "ssh-") || strings.HasPrefix(kind, "ecdsa-sha2-") || strings.HasPrefix(kind, "sk-")
	return known && strings.HasPrefix(strings.TrimSpace(rest), "AAAA")
}

// defaultKeys returns the person's own public keys: their files as they are
// said, and the keys. What is not a key there is left out.
func defaultKeys() (files, keys []string) {
	dir, err := os.UserHomeDir()
	if err != nil {
		return nil, nil
	}
	list, err := filepath.Glob(filepath.Join(dir, ".ssh", "id_*.pub"))
	if err != nil {
		return nil, nil
	}
	for _, f := range list {
		if found, err := publicKeys(f); err == nil {
			files = append(files, "~/.ssh/"+filepath.Base(f))
			keys = append(keys, found...)
		}
	}
	return files, keys
}

// ownKey returns this home's public key. The pair is made when it is first
// needed; where ssh-keygen is missing the error wraps exec.ErrNotFound.
func ownKey() (string, error) {
	h, err := home.Find()
	if err != nil {
		return "", err
	}
	pub := h.Key() + ".pub"
	if b, err := os.ReadFile(pub); err == nil && isPublicKey(string(b)) {
		if _, err := os.Stat(h.Key()); err == nil {
			return strings.TrimSpace(string(b)), nil
		}
	}
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(h.Key()); errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(keygen, h); err != nil {
			return "", fmt.Errorf("make this home's SSH key: %w", err)
		}
	}
	// The public key is made of the private one, so that two commands at once,
	// or one that was interrupted, cannot leave a pair that does not match.
	out, err := exec.Command(keygen, "-y", "-f", h.Key()).Output()
	if err != nil {
		return "", fmt.Errorf("public key of %s: %w", h.Key(), withStderr(err))
	}
	line := strings.TrimSpace(string(out))
	if !isPublicKey(line) {
		return "", fmt.Errorf("public key of %s: ssh-keygen printed %.40q", h.Key(), line)
	}
	if err := replaceFile(pub, line+"\n"); err != nil {
		return "", err
	}
	return line, nil
}

// makeKey makes the private key. The first of two commands wins.
func makeKey(keygen string, h home.Home) error {
	if err := os.MkdirAll(h.Data, 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(h.Data, ".key-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fresh := filepath.Join(dir, "key")
	cmd := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-C", "lamina", "-f", fresh)
	if _, err := cmd.Output(); err != nil {
		return withStderr(err)
	}
	if err := os.Link(fresh, h.Key()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// replaceFile writes a small file so that it is there whole or not at all.
func replaceFile(name, text string) error { return placeFile(name, text, os.Rename) }

// newFile is replaceFile where there is no file yet: else the error is
// [fs.ErrExist].
func newFile(name, text string) error {
	return placeFile(name, text, func(from, to string) error {
		err := os.Link(from, to)
		if err != nil && !errors.Is(err, fs.ErrExist) { // not all file systems have links
			return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		}
		_ = os.Remove(from) // one name is enough
		return err
	})
}

// placeFile writes a file beside its place, and has place put it there.
func placeFile(name, text string, place func(from, to string) error) error {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(name), ".new-"+rand.Text()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = place(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// withStderr adds what a program wrote to stderr to its exit status.
func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}
