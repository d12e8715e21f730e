package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
)

// launch is what the attempts of one start have in common.
type launch struct {
	driver       *Driver
	binary, dir  string
	spec         vm.Spec
	onKVMFailure func(reason string) // may be nil
	thaw         *thaw               // nil for a start from nothing
}

// exitError: QEMU ended, or stopped the guest, before the start was done.
type exitError struct {
	words  string // QEMU's own
	status string // of the process
	log    string // path
}

func (e *exitError) Error() string {
	switch {
	case e.words == "" && e.status == "":
		return fmt.Sprintf("QEMU ended without a word (log: %s)", e.log)
	case e.words == "":
		return fmt.Sprintf("QEMU ended without a word: %s (log: %s)", e.status, e.log)
	}
	return fmt.Sprintf("QEMU: %s (log: %s)", e.words, e.log)
}

// errInternal: QEMU stopped the guest with status internal-error, which is
// how a virtual CPU that cannot go on shows.
var errInternal = errors.New("QEMU stopped the guest with status internal-error")

// logMark begins the lines of the log that are ours.
const logMark = "# "

const (
	// maxPortTries bounds the starts with newly chosen ports.
	maxPortTries  = 5
	addressTaken  = "Address already in use"
	portTaken     = "Could not set up host forwarding rule"
	noSandboxText = "seccomp" // "seccomp support is disabled", "sandbox ... not supported"
)

var kvmWords = regexp.MustCompile(`(?i)\bkvm\b|kvm_|\bMSR\b|\bCPUID\b|/dev/kvm`)

// kvmComplaint returns what an error of a start under KVM says about KVM, ""
// where it may have nothing to do with it.
func kvmComplaint(err error) string {
	var ee *exitError
	switch {
	case errors.Is(err, errInternal):
		return errInternal.Error()
	case errors.As(err, &ee) && ee.words != "" && kvmWords.MatchString(ee.words):
		return ee.words
	}
	return ""
}

// blamesKVM says whether a start under KVM failed in a way that another one on
// this host would too: by KVM's own words, or without any.
func blamesKVM(err error) bool {
	var ee *exitError
	return kvmComplaint(err) != "" || errors.As(err, &ee) && ee.words == ""
}

// run starts QEMU with one accelerator and watches the guest for a while. It
// starts again where QEMU lacks the sandbox, or lost the race for a port.
func (l launch) run(ctx context.Context, accel vm.Accel, note string, watch time.Duration) (*machine, error) {
	for try := 1; ; try++ {
		sandbox := !l.driver.noSandbox.Load()
		c := config{spec: l.spec, accel: accel, sandbox: sandbox, isBlockDevice: isBlockDevice, thaw: l.thaw}
		m, chose, err := l.once(ctx, c, note, watch)
		var ee *exitError
		if err == nil || !errors.As(err, &ee) {
			return m, err
		}
		switch {
		case sandbox && lacksSandbox(ee.words):
			l.driver.noSandbox.Store(true)
		case chose && try < maxPortTries && (strings.Contains(ee.words, portTaken) || strings.Contains(ee.words, addressTaken)):
		default:
			return nil, err
		}
	}
}

// lacksSandbox recognizes a QEMU that was built without seccomp: it either
// says that the support is not compiled in, or does not know the option.
func lacksSandbox(words string) bool {
	return strings.Contains(words, noSandboxText) || strings.Contains(words, "-sandbox")
}

func isBlockDevice(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
}

// once is one attempt. What it leaves behind on an error is the log.
func (l launch) once(ctx context.Context, c config, note string, watch time.Duration) (m *machine, chose bool, err error) {
	nics, chose, release, err := l.driver.ports.fill(c.spec.NICs)
	if err != nil {
		return nil, false, err
	}
	defer release()
	c.spec.NICs = nics
	displays, choseDisplay, releaseDisplays, err := l.driver.ports.fillDisplays(c.spec.Displays)
	if err != nil {
		return nil, false, err
	}
	defer releaseDisplays()
	c.spec.Displays, chose = displays, chose || choseDisplay
	given := c.spec
	made, err := l.prepare(ctx, &c)
	r := record{Spec: given, Helpers: made.identities(), Info: vm.RunInfo{
		StartedAt: c.now,
		Accel:     c.accel,
		AccelNote: note,
		Forwards:  forwards(nics),
		VNC:       displayAddress(c.spec, vm.DisplayVNC, l.dir),
		SPICE:     displayAddress(c.spec, vm.DisplaySPICE, l.dir),
	}}
	if c.spec.VSock != nil {
		r.Info.VSockCID = c.spec.VSock.CID
	}
	if c.thaw != nil {
		r.DiskIDs, r.NICIDs = c.thaw.layout.Disks, c.thaw.layout.NICs
	}
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err == nil {
		err = r.write(l.dir)
	}
	if err != nil {
		return nil, chose, errors.Join(err, made.end(kctx), removeRuntime(l.dir))
	}
	p, err := l.spawn(c, made.files)
	made.close()
	if err != nil {
		return nil, chose, errors.Join(err, made.end(kctx), removeRuntime(l.dir))
	}
	m, err = l.bringUp(ctx, p, r, watch)
	if err != nil {
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		if kerr := p.kill(kctx); kerr != nil {
			return nil, chose, errors.Join(err, kerr) // its files stay: they say what to end
		}
		return nil, chose, errors.Join(err, made.end(kctx), removeRuntime(l.dir))
	}
	m.spacePause, m.ports = l.driver.spacePause, &l.driver.ports
	go m.supervise()
	return m, chose, nil
}

// spawn runs QEMU with its command in the log.
func (l launch) spawn(c config, files []*os.File) (*process, error) {
	log, err := os.OpenFile(filepath.Join(l.dir, home.QEMULogFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	args := c.args()
	if _, err := fmt.Fprintf(log, "%s%s %s %q\n", logMark, time.Now().Format(time.RFC3339), l.binary, args); err != nil {
		return nil, err
	}
	p, err := spawn(l.binary, args, l.dir, log, c.environment(), files)
	if err != nil {
		return nil, fmt.Errorf("QEMU: %w", err)
	}
	return p, nil
}

// bringUp notes the process, connects to it, lets the guest execute, and
// watches it for a while.
func (l launch) bringUp(ctx context.Context, p *process, r record, watch time.Duration) (*machine, error) {
	r.Process = p.identity
	r.Info.PID = p.PID
	if err := r.write(l.dir); err != nil {
		return nil, err
	}
	sctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	m, err := l.attachNew(sctx, p, r)
	if err != nil {
		return nil, err
	}
	m.onKVMFailure = l.onKVMFailure
	if err = l.firstStep(sctx, m); err == nil {
		err = m.watchStart(ctx, watch)
	}
	if err != nil {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-p.done: // then the lost connection was only the sign of it
			if p.succeeded() {
				return m, nil // the guest powered off at once
			}
			err = l.exitError(p)
		}
		return nil, errors.Join(err, m.disconnect())
	}
	return m, nil
}

// firstStep lets the guest execute. The record has the version of QEMU before
// that; where it goes on from a frozen state, after it: whoever finds one that is
// half-way ends it, as it cannot be told from one that a person has paused.
func (l launch) firstStep(ctx context.Context, m *machine) error {
	if l.thaw != nil {
		if err := m.awaitState(ctx); err != nil {
			return err
		}
	}
	m.record.Info.QEMU = m.monitor().Version().String()
	if err := m.findPTYs(ctx); err != nil {
		return err
	}
	if l.thaw == nil {
		if err := m.record.write(l.dir); err != nil {
			return err
		}
	}
	if err := m.settle(ctx); err != nil {
		return err
	}
	if err := m.execute(ctx, "cont", nil, nil); err != nil || l.thaw == nil {
		return err
	}
	return m.record.write(l.dir)
}

// attachNew connects to a QEMU that is still coming up.
func (l launch) attachNew(ctx context.Context, p *process, r record) (*machine, error) {
	for {
		m, err := attach(ctx, p, r, l.dir)
		if err == nil {
			return m, nil
		}
		early := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
		if early {
			select {
			case <-p.done:
			case <-ctx.Done():
			case <-time.After(2 * time.Millisecond):
				continue
			}
		} else {
			select { // QEMU may have ended in the middle of the negotiation
			case <-p.done:
			case <-time.After(100 * time.Millisecond):
				return nil, err
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("QEMU's monitor does not answer: %w", ctx.Err())
		}
		return nil, l.exitError(p)
	}
}

func (l launch) exitError(p *process) error {
	return &exitError{words: lastWords(l.dir), status: p.status(), log: filepath.Join(l.dir, home.QEMULogFile)}
}

// watchStart returns when the guest has executed for the given time.
func (m *machine) watchStart(ctx context.Context, watch time.Duration) error {
	end := time.After(watch)
	for {
		status, err := m.queryStatus(ctx)
		switch {
		case err != nil:
			return err
		case status == statusInternalError:
			return errInternal
		}
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-m.proc.done:
			return vm.ErrNotRunning
		case <-time.After(min(watch, 50*time.Millisecond)):
		}
	}
}

// resumeStart finishes a start whose starter died between the note of the
// process and the guest's first instruction.
func (m *machine) resumeStart(ctx context.Context) error {
	status, err := m.queryStatus(ctx)
	if err == nil && status == statusPrelaunch {
		if err = m.settle(ctx); err == nil {
			err = m.execute(ctx, "cont", nil, nil)
		}
	}
	return err
}

func (m *machine) queryStatus(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.execute(ctx, "query-status", nil, &s)
	return s.Status, err
}

// forwards are those of all cards, with their final ports.
func forwards(nics []vm.NIC) []vm.Forward {
	all := []vm.Forward{}
	for _, n := range nics {
		all = append(all, n.Forwards...)
	}
	return all
}

// vncAddress is where a viewer finds the screen.
func vncAddress(v, dir string) string {
	switch v {
	case vm.VNCNone:
		return ""
	case vm.VNCUnix:
		return filepath.Join(dir, home.VNCSocket)
	}
	host, display, err := vm.ParseVNC(v)
	if err != nil {
		return "" // Validate has refused it
	}
	return vncHostPort(host, display)
}

// event data that the driver reads.
type shutdownData struct {
	Guest  bool   `json:"guest"`
	Reason string `json:"reason"`
}

func decodeShutdown(e qmp.Event) shutdownData {
	var s shutdownData
	if json.Unmarshal(e.Data, &s) != nil {
		return shutdownData{}
	}
	return s
}
