package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/vm"
)

// regainSock is the name of a socket in the machine's folder for an instant.
const regainSock = "regain.sock"

// regain has QEMU open the images again that it has closed at the end of a migration,
// while the guest stays stopped. Only cont does that by itself, and blockdev-set-active
// is new in 10.0; but what is exported is opened first (QEMU's blk_exp_add). The export is
// for reading, on a socket that has no name, and is gone at once.
func (m *machine) regain(ctx context.Context) error {
	status, err := m.queryStatus(ctx)
	if err != nil || status != statusMigrated {
		return err
	}
	listener, err := m.namelessListener()
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }() // QEMU has its own
	if err := m.monitor().SendFile(ctx, "regain", listener); err != nil {
		return err
	}
	_ = m.execute(ctx, "nbd-server-stop", nil, nil) // of whoever died in here
	address := map[string]any{"addr": map[string]any{"type": "fd", "data": map[string]string{"str": "regain"}}}
	if err := m.execute(ctx, "nbd-server-start", address, nil); err != nil {
		return fmt.Errorf("open its images again: %w", err)
	}
	err = m.exportAll(ctx)
	if e := m.execute(ctx, "nbd-server-stop", nil, nil); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("open its images again: %w", err)
	}
	return nil
}

// exportAll exports each drive's image.
func (m *machine) exportAll(ctx context.Context) error {
	for i := range m.spec().Disks {
		id := m.diskIDAt(i)
		node, err := m.topNode(ctx, id)
		if errors.Is(err, vm.ErrNoDevice) {
			continue // no medium in it
		}
		if err != nil {
			return err
		}
		export := map[string]any{"type": "nbd", "id": "regain-" + id, "node-name": node, "name": id, "writable": false}
		if err := m.execute(ctx, "block-export-add", export, nil); err != nil {
			return err
		}
	}
	return nil
}

// namelessListener is a listening socket to which nobody finds the way.
func (m *machine) namelessListener() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), regainSock)
	path := m.socketPath(regainSock)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, f.Close())
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = errors.Join(unix.Listen(fd, 1), os.Remove(path))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), f.Close())
	}
	return f, nil
}
