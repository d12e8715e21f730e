package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

func (d *Daemon) postDefine(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.DefineRequest](w, r)
	if err != nil {
		return err
	}
	n, err := newDefinition(req)
	if err != nil {
		return err
	}
	rec, err := d.store.Define(r.Context(), n)
	if err != nil {
		return err
	}
	m := d.add(rec)
	d.log.Info("machine defined", "machine", m.name, "install", n.Definition.Install != nil)
	if err := r.Context().Err(); err != nil && req.Start {
		// Who asked has found no machine meanwhile, and taken its disks back.
		return m.undo(cause(r.Context()))
	}
	s := newEvents(w)
	if req.Start {
		err = d.launch(r.Context(), m, startOptions{timeout: req.Timeout}, req.NoWait, s)
	}
	s.done(m.describe(), err)
	return nil
}

// newDefinition checks a request and fills in what it leaves open.
func newDefinition(req api.DefineRequest) (store.NewDefinition, error) {
	n := store.NewDefinition{
		Spec:       req.Spec.WithDefaults(),
		Definition: api.Definition{Phase: api.Installed, Owned: req.Owned, Transient: req.Transient},
		Last:       store.Last{Fresh: req.Start, Autostart: req.Autostart},
	}
	invalid := func(format string, args ...any) (store.NewDefinition, error) {
		return n, api.Errorf(api.CodeInvalid, "define: "+format, args...)
	}
	switch {
	case req.Transient && req.Autostart:
		return invalid("a transient machine is gone when the host starts again: it cannot be started with it")
	case req.Transient && !req.Start:
		return invalid("a transient machine is there only while it runs: start it")
	}
	if err := n.Spec.Validate(); err != nil {
		return invalid("%w", err)
	}
	if req.Install != nil {
		in := *req.Install
		in.Spec = installSpec(in.Spec, n.Spec)
		if err := in.Spec.Validate(); err != nil {
			return invalid("the install phase: %w", err)
		}
		for _, path := range in.Owned {
			if slices.Contains(append(filesOf(n.Spec), req.Owned...), path) {
				return invalid("%s is a file of the install phase alone, and the machine has it too: it would be gone", path)
			}
		}
		n.Definition.Phase, n.Definition.Install = api.NotInstalled, &in
	}
	for _, path := range store.OwnFiles(store.Machine{Definition: &n.Definition}) {
		if err := checkOwned(path); err != nil {
			return invalid("%w", err)
		}
	}
	return n, nil
}

// installSpec is the install phase of the machine final: the same machine for
// everybody who looks at it, ended by the guest's reboot.
func installSpec(s, final vm.Spec) vm.Spec {
	s.Name, s.UUID, s.NoReboot = final.Name, final.UUID, true
	s.NICs = slices.Clone(s.NICs)
	for i := range s.NICs {
		if s.NICs[i].MAC == "" && i < len(final.NICs) {
			s.NICs[i].MAC = final.NICs[i].MAC
		}
	}
	return s.WithDefaults()
}

// filesOf are the files that a machine starts with.
func filesOf(s vm.Spec) []string {
	b := s.Boot
	out := []string{b.Kernel, b.Initrd, b.DTB, b.NVRAM, b.Loader}
	for _, d := range s.Disks {
		out = append(out, d.Path)
	}
	return out
}

// checkOwned refuses what a machine cannot own.
func checkOwned(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("owned file %q: give its whole path, as short as it can be", path)
	}
	st, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("owned file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("owned file %s is not a plain file: a machine may own plain files only", path)
	}
	return nil
}

// undo removes a machine whose first start came to nothing and whose maker is
// told so: failed says why.
func (m *machine) undo(failed error) error {
	if !m.last().Fresh {
		return failed
	}
	end, err := m.begin(context.WithoutCancel(m.d.ctx))
	if err != nil {
		return failed // it is removed already
	}
	defer end()
	if m.running() != nil || !m.last().Fresh {
		return failed // somebody else has started it meanwhile
	}
	if err := m.d.store.UndoDefinition(m.d.ctx, m.id); err != nil {
		return errors.Join(failed, err)
	}
	m.forgotten()
	m.d.log.Info("definition undone", "machine", m.name)
	return failed
}

// unfinished ends what an earlier daemon left half done with a machine that has
// a definition, and says whether the machine is gone with that.
func (m *machine) unfinished(ctx context.Context) (gone bool) {
	rec := m.known()
	var err error
	switch {
	case rec.Definition == nil:
		return false
	case rec.Last.Fresh:
		gone, err = true, m.undoFresh(ctx)
	case m.running() != nil || rec.Last.Running:
		return false
	case rec.Definition.Transient:
		if err = m.d.store.RemoveMachine(ctx, m.id); err == nil {
			m.forgotten()
			gone = true
		}
	default:
		m.forgetInstall(ctx)
	}
	if err != nil {
		m.d.log.Error("a machine is not cleaned up yet", "machine", m.name, "error", err)
	}
	return gone
}

// undoFresh removes a machine whose maker was never told that it runs.
func (m *machine) undoFresh(ctx context.Context) error {
	if r := m.running(); r != nil {
		if err := m.kill(ctx, r); err != nil {
			return err
		}
	} else if m.last().Running {
		return fmt.Errorf("its process cannot be reached: `lamina rm -f %s` removes it", m.name)
	}
	if err := m.d.store.UndoDefinition(ctx, m.id); err != nil {
		return err
	}
	m.forgotten()
	return nil
}

// vanish removes a transient machine that has ended.
func (m *machine) vanish(ctx context.Context) {
	end, err := m.begin(ctx)
	if err != nil {
		return // removed already, or the next daemon does it
	}
	defer end()
	if m.running() != nil {
		return
	}
	if err := m.d.store.RemoveMachine(ctx, m.id); err != nil {
		m.d.log.Error("a transient machine is not removed yet", "machine", m.name, "error", err)
		return
	}
	m.forgotten()
	m.d.log.Info("transient machine removed", "machine", m.name)
}
