package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// helperTimeout is how long a helper may take to make its socket, helperGrace
// how long it may take to end when QEMU has.
const (
	helperTimeout = 10 * time.Second
	helperGrace   = 2 * time.Second
)

// startHelpers starts the processes that serve QEMU: a TPM, shared folders. Each
// ends by itself when QEMU lets go of its socket.
func (l launch) startHelpers(ctx context.Context, c *config, r *resources) error {
	if t := c.spec.TPM; t != nil && t.Type != "passthrough" {
		if err := l.startTPM(ctx, *t, r); err != nil {
			return fmt.Errorf("TPM: %w", err)
		}
	}
	for i, f := range c.spec.Filesystems {
		st, err := os.Stat(f.Source)
		if err == nil && !st.IsDir() {
			err = errors.New("not a folder")
		}
		if err != nil {
			return fmt.Errorf("shared folder %s: %w", f.Source, err)
		}
		if f.Driver == "virtiofs" {
			if err := l.startVirtioFS(ctx, i, f, r); err != nil {
				return fmt.Errorf("shared folder %s: %w", f.Source, err)
			}
		}
	}
	return nil
}

// startTPM runs swtpm, whose state is in the machine's folder.
func (l launch) startTPM(ctx context.Context, t vm.TPM, r *resources) error {
	binary, err := exec.LookPath("swtpm")
	if err != nil {
		return fmt.Errorf("%w: install the package swtpm, or leave the TPM out", err)
	}
	if err := os.MkdirAll(filepath.Join(l.dir, home.TPMDir), 0o700); err != nil {
		return err
	}
	args := []string{"socket", "--tpmstate", "dir=" + home.TPMDir + ",mode=0600", "--ctrl", "type=unixio,path=" + home.TPMSocket + ",mode=0600", "--terminate"}
	if t.Version != "1.2" {
		args = append(args, "--tpm2")
	}
	return l.startHelper(ctx, binary, args, home.TPMSocket, r)
}

// virtiofsdDescriptors say where the host's virtiofsd is (docs/interop/
// vhost-user.json in QEMU's sources).
const virtiofsdDescriptors = "/usr/share/qemu/vhost-user/*.json"

func findVirtiofsd() (string, error) {
	files, err := filepath.Glob(virtiofsdDescriptors)
	if err != nil {
		return "", err
	}
	candidates := []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"}
	for _, f := range files {
		var d struct {
			Type   string `json:"type"`
			Binary string `json:"binary"`
		}
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &d) == nil && d.Type == "fs" {
			candidates = append([]string{d.Binary}, candidates...)
		}
	}
	if p, err := exec.LookPath("virtiofsd"); err == nil {
		candidates = append(candidates, p)
	}
	for _, p := range candidates {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", errors.New("virtiofsd is not installed: install the package virtiofsd (or qemu-system-common), or use driver 9p")
}

func (l launch) startVirtioFS(ctx context.Context, index int, f vm.Filesystem, r *resources) error {
	binary, err := findVirtiofsd()
	if err != nil {
		return err
	}
	socket := filesystemSocket(index)
	return l.startHelper(ctx, binary, []string{"--socket-path=" + socket, "-o", "source=" + f.Source}, socket, r)
}

// startHelper runs a helper in the machine's folder and returns when its socket
// is there. Its words are in QEMU's log.
func (l launch) startHelper(ctx context.Context, binary string, args []string, socket string, r *resources) error {
	log, err := os.OpenFile(filepath.Join(l.dir, home.QEMULogFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	path := filepath.Join(l.dir, socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p, err := spawn(binary, args, l.dir, log, nil, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", binary, err)
	}
	r.helpers = append(r.helpers, p)
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %s: %s", filepath.Base(binary), p.status(), lastWords(l.dir))
		case <-ctx.Done():
			return fmt.Errorf("%s makes no socket: %w", filepath.Base(binary), ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// endHelpers waits until the helpers of a machine that has ended are gone too,
// and ends those that stay: the next start needs what they hold.
func endHelpers(ctx context.Context, ids []identity) error {
	var errs []error
	for _, id := range ids {
		p, err := adopt(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		select {
		case <-p.done:
		case <-time.After(helperGrace):
			errs = append(errs, p.kill(ctx))
		case <-ctx.Done():
			errs = append(errs, p.kill(context.WithoutCancel(ctx)))
		}
	}
	return errors.Join(errs...)
}
