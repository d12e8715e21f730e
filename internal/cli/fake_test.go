package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/vm"
)

// fakeDaemon keeps the contract of package api without a guest: machines of
// the image "noboot" stop at the firmware, those of "slow" never reach login.
// Each script has its own, in its own home.
type fakeDaemon struct {
	mu        sync.Mutex
	templates []api.Template
	machines  []*api.Machine
	fleets    []api.FleetState
	sshPort   int
	end       chan struct{}
	home      home.Home
	requests  io.Writer
}

// runFakeDaemon is the program laminad of the scripts.
func runFakeDaemon() {
	h, err := home.Find()
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("unix", h.Socket())
	if err != nil {
		panic(err)
	}
	ssh, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := ssh.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "SSH-2.0-fake\r\n")
			_ = c.Close()
		}
	}()
	log, err := os.OpenFile(h.Data+"/requests", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		panic(err)
	}
	d := &fakeDaemon{end: make(chan struct{}), sshPort: ssh.Addr().(*net.TCPAddr).Port, home: h, requests: log}
	go func() { _ = http.Serve(l, d.routes()) }()
	select {
	case <-d.end:
	case <-time.After(2 * time.Minute): // the scripts are long over
	}
	_ = l.Close()
}

func (d *fakeDaemon) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			d.mu.Lock()
			defer d.mu.Unlock()
			if err := f(w, r); err != nil {
				e, ok := err.(*api.Error)
				if !ok {
					e = api.Errorf(api.CodeFailed, "%v", err)
				}
				w.WriteHeader(httpStatus(e.Code))
				_ = json.NewEncoder(w).Encode(e)
			}
		})
	}
	handle("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) error {
		return json.NewEncoder(w).Encode(api.Version{Version: "fake", API: api.Level, PID: os.Getpid()})
	})
	handle("POST /v1/shutdown", func(w http.ResponseWriter, _ *http.Request) error {
		w.WriteHeader(204)
		close(d.end)
		return nil
	})
	handle("GET /v1/catalog", func(w http.ResponseWriter, _ *http.Request) error {
		return json.NewEncoder(w).Encode([]api.CatalogEntry{{Name: "debian:12", User: "debian", Description: "Debian 12", MinMemory: 512 << 20}})
	})
	handle("POST /v1/pull", d.pull)
	handle("GET /v1/templates", func(w http.ResponseWriter, _ *http.Request) error {
		return json.NewEncoder(w).Encode(append([]api.Template{}, d.templates...))
	})
	handle("POST /v1/templates", d.importTemplate)
	handle("GET /v1/templates/{ref}", func(w http.ResponseWriter, r *http.Request) error {
		t, err := d.template(r.PathValue("ref"))
		if err != nil {
			return err
		}
		return json.NewEncoder(w).Encode(t)
	})
	handle("POST /v1/templates/{ref}/verify", func(w http.ResponseWriter, r *http.Request) error {
		t, err := d.template(r.PathValue("ref"))
		if err != nil {
			return err
		}
		if t.Name == "rotten" {
			return finishStream(w, nil, api.Errorf(api.CodeFailed, "the image is not what was imported"))
		}
		return finishStream(w, t, nil)
	})
	handle("DELETE /v1/templates/{ref}", func(w http.ResponseWriter, r *http.Request) error {
		t, err := d.template(r.PathValue("ref"))
		if err != nil {
			return err
		}
		if len(t.Machines) > 0 {
			return api.Errorf(api.CodeInUse, "template %s is needed by %s", t.Name, strings.Join(t.Machines, ", "))
		}
		d.templates = slices.DeleteFunc(d.templates, func(o api.Template) bool { return o.Name == t.Name })
		w.WriteHeader(204)
		return nil
	})
	d.layerRoutes(handle)
	d.fleetRoutes(handle)
	d.machineRoutes(handle)
	d.warmRoutes(handle)
	return mux
}

func (d *fakeDaemon) machineRoutes(handle func(string, func(http.ResponseWriter, *http.Request) error)) {
	handle("GET /v1/machines", func(w http.ResponseWriter, _ *http.Request) error {
		return json.NewEncoder(w).Encode(append([]*api.Machine{}, d.machines...))
	})
	handle("POST /v1/machines", d.run)
	handle("POST /v1/clones", d.clone)
	withMachine := func(pattern string, f func(w http.ResponseWriter, r *http.Request, m *api.Machine) error) {
		handle(pattern, func(w http.ResponseWriter, r *http.Request) error {
			m, err := d.machine(r.PathValue("name"))
			if err != nil {
				return err
			}
			return f(w, r, m)
		})
	}
	withMachine("GET /v1/machines/{name}", func(w http.ResponseWriter, _ *http.Request, m *api.Machine) error {
		return json.NewEncoder(w).Encode(m)
	})
	withMachine("DELETE /v1/machines/{name}", func(w http.ResponseWriter, r *http.Request, m *api.Machine) error {
		if m.Run != nil && r.FormValue("force") == "" {
			return api.Errorf(api.CodeInUse, "machine %s is running: stop it, or use force", m.Name)
		}
		d.machines = slices.DeleteFunc(d.machines, func(o *api.Machine) bool { return o == m })
		w.WriteHeader(204)
		return nil
	})
	withMachine("POST /v1/machines/{name}/start", func(w http.ResponseWriter, r *http.Request, m *api.Machine) error {
		var req api.StartRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		if m.Run != nil {
			return api.Errorf(api.CodeInvalid, "machine %s is running", m.Name)
		}
		return finishStream(w, m, d.boot(w, r, m, req.NoWait))
	})
	withMachine("POST /v1/machines/{name}/stop", func(w http.ResponseWriter, _ *http.Request, m *api.Machine) error {
		if m.Name == "lost" {
			return finishStream(w, m, api.Errorf(api.CodeFailed, "machine lost may still run and cannot be reached"))
		}
		m.Run, m.State, m.SSHPort = nil, api.Stopped, 0
		m.Exit = &vm.Exit{State: vm.StateStopped, Reason: "guest shut down"}
		return finishStream(w, m, nil)
	})
	withMachine("GET /v1/machines/{name}/log", func(w http.ResponseWriter, r *http.Request, m *api.Machine) error {
		_, err := fmt.Fprintf(w, "log of %s, %s\n", m.Name, r.URL.RawQuery)
		return err
	})
	withMachine("GET /v1/machines/{name}/screen", func(w http.ResponseWriter, r *http.Request, m *api.Machine) error {
		if m.Run == nil {
			return api.Errorf(api.CodeInvalid, "machine %s is not running", m.Name)
		}
		text := "Debian\x1b[2J 12\n\n" + m.Name + " login:\n\n\n"
		if r.FormValue("format") == "png" {
			text = "\x89PNG\r\n"
		}
		_, err := io.WriteString(w, text)
		return err
	})
	for _, what := range []string{"attach", "detach", "resize", "media", "autostart"} {
		withMachine("POST /v1/machines/{name}/"+what, func(w http.ResponseWriter, r *http.Request, m *api.Machine) error {
			var req map[string]any
			_ = json.NewDecoder(r.Body).Decode(&req)
			d.record(map[string]any{what: req})
			if req["disk"] == "vdx" {
				return api.Errorf(api.CodeNotFound, "machine %s: drive vdx: no such device", m.Name)
			}
			return json.NewEncoder(w).Encode(m)
		})
	}
	withMachine("POST /v1/machines/{name}/console", func(w http.ResponseWriter, _ *http.Request, m *api.Machine) error {
		if m.Run == nil {
			return api.Errorf(api.CodeInvalid, "machine %s is not running", m.Name)
		}
		go echoConsole(w, m.Name)
		return errHijack(w)
	})
}

// hijacked hands the connection of a console to its goroutine.
var hijacked = make(chan net.Conn, 1)

func errHijack(w http.ResponseWriter) error {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	hijacked <- c
	return nil
}

// echoConsole is a guest that repeats lines until "bye".
func echoConsole(_ http.ResponseWriter, name string) {
	c := <-hijacked
	defer func() { _ = c.Close() }()
	_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lamina-console\r\n\r\n%s login: ", name)
	line, buf := "", make([]byte, 1)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
		if buf[0] != '\r' && buf[0] != '\n' {
			line += string(buf)
			continue
		}
		_, _ = fmt.Fprintf(c, "you said %s\r\n", line)
		if line == "bye" {
			return
		}
		line = ""
	}
}

func emit(w http.ResponseWriter, e api.Event) {
	_ = json.NewEncoder(w).Encode(e)
	_ = http.NewResponseController(w).Flush()
}

func finishStream(w http.ResponseWriter, v any, err error) error {
	e := api.Event{Done: true}
	if err != nil {
		e.Error = err.(*api.Error)
	} else if e.Result, err = json.Marshal(v); err != nil {
		return err
	}
	emit(w, e)
	return nil
}

// record writes a request down for the script to look at.
func (d *fakeDaemon) record(v any) {
	b, _ := json.Marshal(v)
	_, _ = fmt.Fprintf(d.requests, "%s\n", b)
}

func (d *fakeDaemon) template(ref string) (api.Template, error) {
	for _, t := range d.templates {
		if t.Name == ref || slices.Contains(t.Names, ref) || t.Digest == ref || len(ref) >= 12 && strings.HasPrefix(t.Digest, ref) {
			for _, m := range d.machines {
				if m.Digest == t.Digest {
					t.Machines = append(t.Machines, m.Name)
				}
			}
			return t, nil
		}
	}
	return api.Template{}, api.Errorf(api.CodeNotFound, "there is no template %s", ref)
}

func (d *fakeDaemon) machine(name string) (*api.Machine, error) {
	for _, m := range d.machines {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "there is no machine %s", name)
}

func (d *fakeDaemon) pull(w http.ResponseWriter, r *http.Request) error {
	var req api.PullRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.record(req)
	if req.Ref == "debian:13" {
		return finishStream(w, nil, api.Errorf(api.CodeNotFound, "there is no image %s", req.Ref))
	}
	for i := range int64(11) {
		emit(w, api.Event{Step: "download", Current: i << 20, Total: 10 << 20})
	}
	return finishStream(w, api.PullResult{Path: "/cache/debian.qcow2", Size: 10 << 20, SHA256: "abc", Verified: true}, nil)
}

func (d *fakeDaemon) importTemplate(w http.ResponseWriter, r *http.Request) error {
	var req api.ImportRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.record(req)
	if !strings.HasPrefix(req.Source, "/") && req.Source != "debian:12" {
		return finishStream(w, nil, api.Errorf(api.CodeNotFound, "there is no image %s", req.Source))
	}
	name := req.Name
	if name == "" {
		name = names.FromSource(req.Source)
	}
	return finishStream(w, d.addTemplate(name, req.Source), nil)
}

func (d *fakeDaemon) addTemplate(name, source string) api.Template {
	t := api.Template{Name: name, Source: source, Digest: fmt.Sprintf("%064x", 0xabcdef0000+len(d.templates)), VirtualSize: 2 << 30,
		DiskSize: 300 << 20, User: "debian", CreatedAt: time.Unix(1_700_000_000, 0), Machines: []string{}, Kind: api.LayerTemplate}
	d.templates = append(d.templates, t)
	return t
}

func (d *fakeDaemon) add(name string, t api.Template, c api.MachineConfig) *api.Machine {
	dir := d.home.Machine("id-" + name)
	_ = os.MkdirAll(dir, 0o700)
	disk := vm.Disk{Path: dir + "/" + home.DiskFile, Format: "qcow2", Cache: c.Cache}
	if t.Name != "diskless" {
		_ = os.WriteFile(disk.Path, []byte("overlay"), 0o600)
	}
	spec := vm.Spec{Name: name, CPUs: c.CPUs, Memory: c.Memory, Disks: []vm.Disk{disk}}.WithDefaults()
	m := &api.Machine{ID: "id-" + name, Name: name, State: api.Defined, Template: t.Name, Digest: t.Digest, Dir: dir,
		CreatedAt: time.Unix(1_700_000_000, 0), Spec: spec, DiskSize: 12 << 10, User: t.User}
	m.Spec.NICs = []vm.NIC{{Model: "virtio-net-pci", MAC: "52:54:00:00:00:01", Forwards: c.Forwards}}
	d.machines = append(d.machines, m)
	return m
}

// boot starts a machine and tells of it. The lock is let go while it waits.
func (d *fakeDaemon) boot(w http.ResponseWriter, r *http.Request, m *api.Machine, noWait bool) error {
	m.Run = &vm.RunInfo{PID: 1, StartedAt: time.Now(), Accel: vm.AccelTCG, QEMU: "7.2", Forwards: m.Spec.NICs[0].Forwards}
	m.State, m.SSHPort, m.Memory = api.Starting, d.sshPort, 60<<20
	emit(w, api.Event{Step: "start", Machine: m.Name, Text: "starting " + m.Name})
	emit(w, api.Event{Machine: m.Name, Warning: "KVM is not used: it stopped with internal-error"})
	emit(w, api.Event{Step: "start", Machine: m.Name, Text: m.Name + " runs (tcg)"})
	if noWait {
		return nil
	}
	stage := func(s boot.Stage, after time.Duration) {
		m.Stage = s
		emit(w, api.Event{Step: "boot", Machine: m.Name, Boot: &boot.Event{Stage: s, Since: after}})
	}
	stage(boot.StageFirmware, 100*time.Millisecond)
	switch m.Template {
	case "noboot":
		m.State = api.Stuck
		m.Problem = &boot.Problem{Kind: "no-bootable-disk", Stage: boot.StageFirmware, Last: []string{"Booting from Hard Disk...", "No bootable\x1b[2J device."},
			Cause: "the disk has no boot loader", Remedy: []string{"try another image", "try --machine pc"}}
		return &api.Error{Code: api.CodeBoot, Message: m.Name + " did not reach its login prompt", Problem: m.Problem}
	case "slow":
		d.mu.Unlock()
		<-r.Context().Done()
		d.mu.Lock()
		return api.Errorf(api.CodeFailed, "the client went")
	}
	stage(boot.StageKernel, 1200*time.Millisecond)
	stage(boot.StageLogin, 3140*time.Millisecond)
	m.State, m.LoginIn = api.Login, 3140*time.Millisecond
	return nil
}

func (d *fakeDaemon) run(w http.ResponseWriter, r *http.Request) error {
	var req api.RunRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.record(req)
	t, err := d.template(req.Image)
	if err != nil {
		if !strings.HasPrefix(req.Image, "/") {
			return finishStream(w, nil, err)
		}
		t = d.addTemplate(names.FromSource(req.Image), req.Image)
	}
	if req.Name == "" {
		req.Name = "made-up"
	}
	if _, err := d.machine(req.Name); err == nil {
		return api.Errorf(api.CodeExists, "machine %s exists", req.Name)
	}
	emit(w, api.Event{Step: "import", Current: 5, Total: 10})
	m := d.add(req.Name, t, req.MachineConfig)
	emit(w, api.Event{Step: "overlay", Machine: m.Name, Text: "machine " + m.Name + " made"})
	return finishStream(w, m, d.boot(w, r, m, req.NoWait))
}

func (d *fakeDaemon) clone(w http.ResponseWriter, r *http.Request) error {
	var req api.CloneRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.record(req)
	t, err := d.template(req.Template)
	if err != nil {
		return err
	}
	list, err := names.ExpandMachines(req.Names)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "%v", err)
	}
	var out []*api.Machine
	for _, n := range list {
		m := d.add(n, t, req.MachineConfig)
		emit(w, api.Event{Step: "overlay", Machine: n, Text: "machine " + n + " made"})
		out = append(out, m)
	}
	if req.Start {
		for _, m := range out {
			if err := d.boot(w, r, m, req.NoWait); err != nil {
				return finishStream(w, nil, err)
			}
		}
	}
	return finishStream(w, out, nil)
}

func httpStatus(code string) int {
	switch code {
	case api.CodeNotFound:
		return 404
	case api.CodeInvalid:
		return 400
	}
	return 409
}
