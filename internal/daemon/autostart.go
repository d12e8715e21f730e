package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/store"
)

// autostart makes the machines wanted that are to start with the host, if this
// is the first daemon since the host started: one that a person has stopped
// since then is not started by the next command that needs a daemon.
func (d *Daemon) autostart(all []*machine) {
	boot, err := d.bootID()
	if err != nil {
		d.log.Warn("no machine is started with the host", "error", err)
		return
	}
	before, err := os.ReadFile(d.home.Autostarted())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("no machine is started with the host", "error", err)
		return
	}
	if strings.TrimSpace(string(before)) == boot {
		return
	}
	for _, m := range all {
		if last := m.last(); last.Autostart && m.running() == nil && !last.Running {
			_ = m.setLast(func(l *store.Last) { l.Wanted = true }) // an error is logged
		}
	}
	// Last: a daemon that dies before this does it all again.
	if err := os.WriteFile(d.home.Autostarted(), []byte(boot+"\n"), 0o600); err != nil {
		d.log.Warn("machines may be started with the next daemon again", "error", err)
	}
}

func (d *Daemon) bootID() (string, error) {
	if d.opts.BootID != "" {
		return d.opts.BootID, nil
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func (d *Daemon) postAutostart(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	req, err := request[api.AutostartRequest](w, r)
	if err != nil {
		return err
	}
	if rec := m.known(); req.On && rec.Definition != nil && rec.Definition.Transient {
		return fmt.Errorf("machine %s is transient (%w): it is gone when the host starts again", m.name, store.ErrInvalid)
	}
	if err := m.setLast(func(l *store.Last) { l.Autostart = req.On }); err != nil {
		return err
	}
	answer(w, m.describe())
	return nil
}
