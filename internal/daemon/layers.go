package daemon

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/store"
)

func (d *Daemon) postTag(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.TagRequest](w, r)
	if err != nil {
		return err
	}
	t, err := d.store.Tag(r.Context(), r.PathValue("ref"), req.Name, req.Move)
	if err != nil {
		return err
	}
	d.log.Info("template named", "name", req.Name, "digest", t.Digest, "move", req.Move)
	answer(w, t)
	return nil
}

func (d *Daemon) postExport(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.ExportRequest](w, r)
	if err != nil {
		return err
	}
	ref := r.PathValue("ref")
	if _, err := d.store.Template(r.Context(), ref); err != nil {
		return err
	}
	s := newEvents(w)
	err = d.store.Export(r.Context(), ref, req, func(done, total int64) {
		s.progress(api.Event{Step: "export", Current: done, Total: total})
	})
	s.done(struct{}{}, err)
	return nil
}

func (d *Daemon) getLineage(w http.ResponseWriter, r *http.Request) error {
	list, err := d.store.Lineage(r.Context())
	if err != nil {
		return err
	}
	states := make(map[string]api.MachineState)
	for _, m := range d.list() {
		states[m.id] = m.state()
	}
	for i := range list {
		if list[i].Machine {
			// One that is just being made is none yet.
			list[i].State = cmp.Or(states[list[i].ID], api.Defined)
		}
	}
	if list == nil {
		list = []api.LineageNode{}
	}
	answer(w, list)
	return nil
}

// machineStream makes a handler that answers with events of a machine's operation.
func machineStream[T, R any](d *Daemon, do func(m *machine, r *http.Request, req T, s *events) (R, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		m, err := d.find(r.PathValue("name"))
		if err != nil {
			return err
		}
		req, err := request[T](w, r)
		if err != nil {
			return err
		}
		s := newEvents(w)
		out, err := do(m, r, req, s)
		s.done(out, diskError(err))
		return nil
	}
}

// emptyLayer is more than a new layer of a machine takes with all that belongs to it, in
// bytes.
const emptyLayer = 64 << 10

func commitMachine(m *machine, r *http.Request, req api.CommitRequest, s *events) (api.Template, error) {
	if req.Name != "" {
		if err := names.CheckTemplate(req.Name); err != nil {
			return api.Template{}, err
		}
	}
	run, end, err := m.beginDisk(r.Context())
	if err != nil {
		return api.Template{}, err
	}
	defer end()
	if err := m.needStopped(run, ""); err != nil {
		return api.Template{}, err
	}
	if err := m.d.guard.haveRoomFor("commit "+m.name, emptyLayer); err != nil {
		return api.Template{}, err
	}
	s.send(api.Event{Step: "commit", Machine: m.name})
	t, _, err := m.d.store.CommitMachine(r.Context(), m.id, req.Name, req.Move)
	if err != nil {
		return t, err
	}
	m.d.log.Info("committed", "machine", m.name, "template", t.Name, "digest", t.Digest)
	return t, m.reload()
}

func flattenMachine(m *machine, r *http.Request, _ api.FlattenRequest, s *events) (api.Machine, error) {
	if err := m.flatten(r.Context(), s); err != nil {
		return api.Machine{}, err
	}
	return m.describe(), nil
}

func rebaseMachine(m *machine, r *http.Request, req api.RebaseRequest, s *events) (api.Machine, error) {
	if req.Template == "" {
		return api.Machine{}, api.Errorf(api.CodeInvalid, "rebase: no template given")
	}
	run, end, err := m.beginDisk(r.Context())
	if err != nil {
		return api.Machine{}, err
	}
	defer end()
	if err := m.needStopped(run, ""); err != nil {
		return api.Machine{}, err
	}
	// A copy of its own layer, into which goes what differs: at most all that it shows.
	own, whole, err := m.d.store.DiskSizes(r.Context(), m.known())
	if err != nil {
		return api.Machine{}, fmt.Errorf("rebase %s: %w", m.name, err)
	}
	if err := m.d.guard.haveRoomFor("rebase "+m.name, own+whole); err != nil {
		return api.Machine{}, err
	}
	_, err = m.d.store.Rebase(r.Context(), m.id, req.Template, func(done, total int64) {
		s.progress(api.Event{Step: "rebase", Machine: m.name, Current: done, Total: total})
	})
	if err == nil {
		err = m.reload()
	}
	if err != nil {
		return api.Machine{}, err
	}
	m.d.log.Info("rebased", "machine", m.name, "template", req.Template)
	return m.describe(), nil
}

func (d *Daemon) postTemplateFrom(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.TemplateFromRequest](w, r)
	if err != nil {
		return err
	}
	switch {
	case req.Machine == "":
		return api.Errorf(api.CodeInvalid, "template: no machine given")
	case req.Timeout < 0:
		return api.Errorf(api.CodeInvalid, "template: the timeout %s is negative", req.Timeout)
	case req.Name != "":
		if err := names.CheckTemplate(req.Name); err != nil {
			return err
		}
	}
	m, err := d.find(req.Machine)
	if err != nil {
		return err
	}
	s := newEvents(w)
	t, err := m.template(r.Context(), req, s)
	s.done(t, err)
	return nil
}

// fromMachine is what the store is asked for.
func (m *machine) fromMachine(req api.TemplateFromRequest) store.FromMachine {
	return store.FromMachine{Machine: m.id, Name: req.Name, Flatten: req.Flatten, Compress: req.Compress, User: m.known().User}
}
