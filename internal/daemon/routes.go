package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/catalog"
	"github.com/lamina-vm/lamina/internal/store"
)

// handler routes the API of package api.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	routes := map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/version":                    d.getVersion,
		"GET /v1/catalog":                    d.getCatalog,
		"POST /v1/pull":                      d.postPull,
		"GET /v1/templates":                  d.getTemplates,
		"POST /v1/templates":                 d.postTemplates,
		"GET /v1/templates/{ref}":            d.getTemplate,
		"DELETE /v1/templates/{ref}":         d.deleteTemplate,
		"POST /v1/templates/{ref}/verify":    d.postVerify,
		"GET /v1/machines":                   d.getMachines,
		"POST /v1/machines":                  d.postMachines,
		"POST /v1/clones":                    d.postClones,
		"GET /v1/machines/{name}":            d.getMachine,
		"DELETE /v1/machines/{name}":         d.deleteMachine,
		"POST /v1/machines/{name}/start":     d.postStart,
		"POST /v1/machines/{name}/stop":      d.postStop,
		"GET /v1/machines/{name}/boot":       d.getBoot,
		"GET /v1/machines/{name}/log":        d.getLog,
		"GET /v1/machines/{name}/screen":     d.getScreen,
		"POST /v1/machines/{name}/console":   d.postConsole,
		"POST /v1/define":                    d.postDefine,
		"GET /v1/machines/{name}/wait":       d.getWait,
		"POST /v1/machines/{name}/autostart": d.postAutostart,
		"POST /v1/machines/{name}/attach":    device(d, attach),
		"POST /v1/machines/{name}/detach":    device(d, detach),
		"POST /v1/machines/{name}/resize":    device(d, resize),
		"POST /v1/machines/{name}/media":     device(d, media),
		"POST /v1/templates/{ref}/tag":       d.postTag,
		"POST /v1/templates/{ref}/export":    d.postExport,
		"POST /v1/template-from":             d.postTemplateFrom,
		"POST /v1/templates/{ref}/warm":      d.postWarm,
		"GET /v1/warm":                       d.getWarm,
		"DELETE /v1/warm/{id}":               d.deleteWarm,
		"POST /v1/machines/{name}/fork":      machineStream(d, forkMachine),
		"GET /v1/lineage":                    d.getLineage,
		"POST /v1/machines/{name}/clone":     machineStream(d, cloneMachine),
		"POST /v1/machines/{name}/commit":    machineStream(d, commitMachine),
		"POST /v1/machines/{name}/flatten":   machineStream(d, flattenMachine),
		"POST /v1/machines/{name}/rebase":    machineStream(d, rebaseMachine),
		"POST /v1/prune":                     d.postPrune,
		"GET /v1/space":                      d.getSpace,
		"PUT /v1/space":                      d.putSpace,
		"POST /v1/shutdown":                  d.postShutdown,
	}
	maps.Copy(routes, d.fleetRoutes())
	for pattern, h := range routes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				d.log.Debug("refused", "method", r.Method, "path", r.URL.Path, "error", err)
				refuse(w, err)
			}
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, api.Errorf(api.CodeNotFound, "%s %s is not part of the API", r.Method, r.URL.Path))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err, ok := r.Context().Value(peerKey{}).(error); ok && err != nil {
			d.log.Warn("client refused", "error", err)
			w.Header().Set("Content-Type", "application/json")
			http.Error(w, `{"code":"failed","message":"permission denied: this daemon is another user's"}`, http.StatusForbidden)
			return
		}
		if d.ctx.Err() != nil || !d.idle.enter() {
			// Cut off without an answer, the client starts the next
			// daemon; an answer would lead it to believe in this one.
			panic(http.ErrAbortHandler)
		}
		defer d.idle.leave()
		mux.ServeHTTP(w, r)
	})
}

func (d *Daemon) getVersion(w http.ResponseWriter, _ *http.Request) error {
	answer(w, api.Version{Version: api.BuildVersion, API: api.Level, PID: os.Getpid()})
	return nil
}

func (d *Daemon) getCatalog(w http.ResponseWriter, _ *http.Request) error {
	answer(w, d.opts.Catalog)
	return nil
}

func (d *Daemon) postShutdown(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	d.log.Info("asked to end")
	d.stop(errStopping)
	return nil
}

func (d *Daemon) postPull(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.PullRequest](w, r)
	if err != nil {
		return err
	}
	if req.Ref == "" {
		return api.Errorf(api.CodeInvalid, "pull: no image given")
	}
	s := newEvents(w)
	res, err := d.opts.Fetcher.Fetch(r.Context(), req.Ref, catalog.Options{Checksum: req.Checksum, Force: req.Force}, s.progress)
	if res.Note != "" {
		s.send(api.Event{Warning: res.Note})
	}
	s.done(res.PullResult, err)
	return nil
}

func (d *Daemon) getTemplates(w http.ResponseWriter, r *http.Request) error {
	all, err := flag(r, "all")
	if err != nil {
		return err
	}
	look := d.store.Templates
	if all {
		look = d.store.Layers
	}
	list, err := look(r.Context())
	if err != nil {
		return err
	}
	if list == nil {
		list = []api.Template{}
	}
	answer(w, list)
	return nil
}

func (d *Daemon) getTemplate(w http.ResponseWriter, r *http.Request) error {
	t, err := d.store.Template(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	answer(w, t)
	return nil
}

func (d *Daemon) deleteTemplate(w http.ResponseWriter, r *http.Request) error {
	if err := d.store.RemoveTemplate(r.Context(), r.PathValue("ref")); err != nil {
		return err
	}
	d.log.Info("template removed", "template", r.PathValue("ref"))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Daemon) postVerify(w http.ResponseWriter, r *http.Request) error {
	t, err := d.store.Template(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	s := newEvents(w)
	s.send(api.Event{Step: "verify", Text: "reading template " + r.PathValue("ref")})
	err = d.store.Verify(r.Context(), t.Digest, func(done, total int64) {
		s.progress(api.Event{Step: "verify", Current: done, Total: total})
	})
	s.done(t, err)
	return nil
}

func (d *Daemon) postTemplates(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.ImportRequest](w, r)
	if err != nil {
		return err
	}
	if req.Source == "" {
		return api.Errorf(api.CodeInvalid, "import: no image given")
	}
	s := newEvents(w)
	t, err := d.repack(r.Context(), req, s)
	if errors.Is(err, store.ErrNotFound) {
		t, err = d.importImage(r.Context(), req, s)
	}
	s.done(t, err)
	return nil
}

// repack makes a template of another one, ErrNotFound where there is none of the name.
// The full name of an image of the catalog is that image, as its template is called so.
func (d *Daemon) repack(ctx context.Context, req api.ImportRequest, s *events) (api.Template, error) {
	if slices.ContainsFunc(d.opts.Catalog, func(e api.CatalogEntry) bool { return e.Name == req.Source }) {
		return api.Template{}, store.ErrNotFound
	}
	if _, err := d.store.Template(ctx, req.Source); err != nil {
		return api.Template{}, err
	}
	if req.Format != "" {
		return api.Template{}, api.Errorf(api.CodeInvalid, "import: %s is a template, whose format is known: leave it out", req.Source)
	}
	if req.Checksum != "" {
		return api.Template{}, api.Errorf(api.CodeInvalid, "import: %s is a template, whose digest is known (`lamina template verify %s` reads it): leave the checksum out", req.Source, req.Source)
	}
	from, err := d.store.Template(ctx, req.Source)
	if err != nil {
		return api.Template{}, err
	}
	size, err := d.store.SizeOfCopy(ctx, from.Digest)
	if err != nil {
		return api.Template{}, fmt.Errorf("import %s: %w", req.Source, err)
	}
	if err := d.guard.haveRoomFor("import "+req.Source, size); err != nil {
		return api.Template{}, err
	}
	t, err := d.store.Repack(ctx, req.Source, store.Import{Name: req.Name, User: req.User, Compress: req.Compress}, func(done, total int64) {
		s.progress(api.Event{Step: "import", Current: done, Total: total})
	})
	if err != nil {
		return t, err
	}
	d.log.Info("template made of another", "template", t.Name, "digest", t.Digest, "source", req.Source)
	return t, nil
}

// importImage fetches an image and makes a template of it.
func (d *Daemon) importImage(ctx context.Context, req api.ImportRequest, s *events) (api.Template, error) {
	if err := d.guard.haveRoom("import " + req.Source); err != nil {
		return api.Template{}, err
	}
	d.fetching.RLock()
	defer d.fetching.RUnlock()
	res, err := d.opts.Fetcher.Fetch(ctx, req.Source, catalog.Options{Checksum: req.Checksum}, s.progress)
	if err != nil {
		return api.Template{}, err
	}
	if res.Note != "" {
		s.send(api.Event{Warning: res.Note})
	}
	in := store.Import{Path: res.Path, Format: req.Format, Source: res.Source, Name: req.Name, User: req.User, Compress: req.Compress}
	if res.Entry != nil {
		in.Suggest = res.Entry.Name
		in.User = cmp.Or(in.User, res.Entry.User)
	}
	// Where that cannot be told, the import says what is wrong with the image.
	if size, err := d.store.SizeOfImport(ctx, in); err == nil {
		if err := d.guard.haveRoomFor("import "+req.Source, size); err != nil {
			return api.Template{}, err
		}
	}
	t, cached, err := d.store.Import(ctx, in, func(done, total int64) {
		s.progress(api.Event{Step: "import", Current: done, Total: total})
	})
	if err != nil {
		return t, err
	}
	if !cached || t.Info.Table == "" && t.Info.Note == "" {
		t = d.lookInto(ctx, t)
	}
	text := "template " + cmp.Or(t.Name, t.Digest[:12])
	if cached {
		text += " is there already"
	}
	s.send(api.Event{Step: "import", Text: text, Current: t.VirtualSize, Total: t.VirtualSize})
	d.log.Info("imported", "template", t.Name, "digest", t.Digest, "source", in.Source, "cached", cached)
	return t, nil
}

func (d *Daemon) getMachines(w http.ResponseWriter, r *http.Request) error {
	list := d.list()
	slices.SortFunc(list, func(a, b *machine) int { return strings.Compare(a.name, b.name) })
	until := time.Now().Add(shareBudget)
	out := make([]api.Machine, 0, len(list))
	var pids []int
	for _, m := range list {
		o := m.describeBy(until)
		if o.Run != nil {
			pids = append(pids, o.Run.PID)
		}
		out = append(out, o)
	}
	answer(w, out)
	if len(pids) > 0 {
		d.background(func(ctx context.Context) {
			d.shares.refresh(pids, func() bool { return ctx.Err() != nil })
		})
	}
	return nil
}

func (d *Daemon) getMachine(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	answer(w, m.describe())
	return nil
}
