package daemon

import (
	"net/http"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
)

func (d *Daemon) deleteMachine(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	force, err := flag(r, "force")
	if err != nil {
		return err
	}
	disks, err := flag(r, "disks")
	if err != nil {
		return err
	}
	if err := m.remove(r.Context(), force, disks); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Daemon) postStart(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	req, err := request[api.StartRequest](w, r)
	if err != nil {
		return err
	}
	if err := checkWarm(req.Warm, req.Wait); err != nil {
		return err
	}
	s := newEvents(w)
	err = d.launch(r.Context(), m, startOptions{timeout: req.Timeout, install: req.Install, warm: req.Warm, wait: req.Wait}, req.NoWait, s)
	s.done(m.describe(), err)
	return nil
}

func (d *Daemon) postStop(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	req, err := request[api.StopRequest](w, r)
	if err != nil {
		return err
	}
	if req.Timeout < 0 {
		return api.Errorf(api.CodeInvalid, "stop: the timeout %s is negative", req.Timeout)
	}
	s := newEvents(w)
	err = m.stopMachine(r.Context(), req, s.send)
	s.done(m.describe(), err)
	return nil
}

func (d *Daemon) getBoot(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	run, err := m.needRun()
	if err != nil {
		return err
	}
	s := newEvents(w)
	err = run.boot.follow(r.Context(), s.send)
	s.done(m.describe(), err)
	return nil
}

func (d *Daemon) getScreen(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	format := r.FormValue("format")
	if format != "text" && format != "png" && format != "" {
		return api.Errorf(api.CodeInvalid, "screen format %q is neither text nor png", format)
	}
	run, err := m.needRun()
	if err != nil {
		return err
	}
	if format == "png" {
		b, err := run.vm.ScreenPNG(r.Context())
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "image/png")
		_, _ = w.Write(b) // the client is gone: nobody to tell
		return nil
	}
	lines, err := run.vm.ScreenText(r.Context())
	if err != nil {
		return err
	}
	if lines == nil {
		return api.Errorf(api.CodeInvalid, "the screen of %s is not in a text mode: ask for a picture (format png)", m.name)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(strings.Join(lines, "\n") + "\n")) // as above
	return nil
}
