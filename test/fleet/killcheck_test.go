package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the state database is looked at as it is

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// settleTime is how long a daemon may take to have done what was left to do.
const settleTime = 2 * time.Minute

// world is what the daemon says that there is.
type world struct {
	machines  []api.Machine
	templates []api.Template // all layers
	units     []api.WarmUnit
	fleets    []api.FleetState
}

func (w world) machine(id string) *api.Machine {
	i := slices.IndexFunc(w.machines, func(m api.Machine) bool { return m.ID == id })
	if i < 0 {
		return nil
	}
	return &w.machines[i]
}

// String is what there is, and lies over what.
func (w world) String() string {
	var b strings.Builder
	for _, m := range w.machines {
		fmt.Fprintln(&b, m.ID, m.Base, m.Spec.Disks[0].Path, m.Run != nil)
	}
	for _, t := range w.templates {
		fmt.Fprintln(&b, t.Digest, t.Parent)
	}
	for _, u := range w.units {
		fmt.Fprintln(&b, u.ID)
	}
	return b.String()
}

// look asks the daemon for everything.
func (l *killLoop) look() (w world) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	var err error
	for _, ask := range []func() error{
		func() error { w.machines, err = l.c.Machines(ctx); return err },
		func() error { w.templates, err = l.c.AllTemplates(ctx); return err },
		func() error { w.units, err = l.c.WarmUnits(ctx); return err },
		func() error { w.fleets, err = l.c.Fleets(ctx); return err },
	} {
		if err := ask(); err != nil {
			l.fatalf("the daemon does not answer: %v", err)
		}
	}
	return w
}

// settle waits until nothing is under way and nothing is left of what was broken off:
// no intent in the database, no file and no process that nothing owns.
func (l *killLoop) settle() world {
	l.t.Helper()
	db, err := sql.Open("sqlite", "file:"+l.h.home.Database()+"?_pragma=busy_timeout(5000)&_pragma=query_only(1)")
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // only read
	last := ""
	for end := time.Now().Add(settleTime); ; time.Sleep(10 * time.Millisecond) {
		w := l.look()
		open := slices.Concat(underWay(w), intents(l.t, db), l.strayFiles(w), l.strayProcesses(w))
		// What is asked for first may go while the rest is asked for.
		if len(open) == 0 && w.String() == last {
			return w
		}
		if last = w.String(); time.Now().After(end) {
			l.fatalf("not settled after %s:\n%s", settleTime, strings.Join(open, "\n"))
		}
	}
}

// underWay is what the daemon itself says that it is at. A guest that boots or becomes
// itself is not waited for.
func underWay(w world) (open []string) {
	for _, m := range w.machines {
		if m.State == api.Starting && m.Run == nil {
			open = append(open, "machine "+m.Name+" is being started")
		}
	}
	for _, f := range w.fleets {
		if f.State == api.FleetApplying || f.State == api.FleetRemoving {
			open = append(open, "fleet "+f.Name+" is "+f.State)
		}
	}
	return open
}

// intents are the rows of what is half made or half removed.
func intents(t testing.TB, db *sql.DB) (open []string) {
	t.Helper()
	rows, err := db.Query(`SELECT 'machine ' || id || ' ' || name || ' is ' || state FROM machines WHERE state <> 'ready'
		UNION ALL SELECT 'layer ' || digest || ' is ' || state FROM templates WHERE state <> 'ready'
		UNION ALL SELECT 'warm unit ' || id || ' is ' || state FROM units WHERE state <> 'ready'
		UNION ALL SELECT 'the disk of machine ' || machine || ' is changed: ' || state FROM disk_changes
		UNION ALL SELECT 'machine ' || id || ' is flattened' FROM machines WHERE streaming <> 0
		UNION ALL SELECT 'export ' || path FROM exports`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }() // only read
	for rows.Next() {
		var what string
		if err := rows.Scan(&what); err != nil {
			t.Fatal(err)
		}
		open = append(open, what)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return open
}

// What lies in a home beside machines, units and layers.
var homeFiles = []string{"laminad.lock", "laminad.log", "state.db", "state.db-wal", "state.db-shm", "id_ed25519", "id_ed25519.pub",
	"autostarted", "cache/kvm.json", "cache/qemu.json", "run/laminad.sock", "run/start.lock"}

// What a machine's folder may hold beside its disk; and while it runs.
var (
	machineFiles = []string{home.SeedFile, home.SecretsFile, home.SerialLogFile, home.SerialLogOld, home.QEMULogFile, home.KnownHosts, home.SSHUserFile}
	runtimeFiles = []string{home.PIDFile, home.RunFile}
)

// strayFiles lists the files of the home that belong to nothing.
func (l *killLoop) strayFiles(w world) (open []string) {
	layers := map[string]bool{}
	for _, t := range w.templates {
		layers[l.layerPath(t)] = true
	}
	err := filepath.WalkDir(l.h.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // it went meanwhile
			}
			return err
		}
		rel, err := filepath.Rel(l.h.dir, p)
		if err != nil {
			return err
		}
		if why := l.stray(w, layers, rel, e); why != "" {
			open = append(open, rel+why)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return open
}

// stray says why a file belongs to nothing, "" where it does.
func (l *killLoop) stray(w world, layers map[string]bool, rel string, e fs.DirEntry) string {
	const nobody = " belongs to nothing"
	part := strings.Split(rel, "/")
	switch {
	case e.IsDir() && len(part) == 1, rel == "layers/disks", rel == "cache/downloads":
		return ""
	case part[0] == "machines" && len(part) > 1:
		m := w.machine(part[1])
		if m == nil {
			return nobody
		}
		return strayInMachine(m, part[2:], e)
	case part[0] == "warm" && len(part) > 1:
		i := slices.IndexFunc(w.units, func(u api.WarmUnit) bool { return u.ID == part[1] })
		if i < 0 {
			return nobody
		}
		if len(part) == 2 || len(part) == 3 && slices.Contains([]string{home.RAMFile, home.StateFile, home.SerialLogFile, home.QEMULogFile}, part[2]) {
			return ""
		}
		return nobody
	case layers[filepath.Join(l.h.dir, rel)], slices.Contains(homeFiles, rel):
		return ""
	}
	return nobody
}

func strayInMachine(m *api.Machine, part []string, e fs.DirEntry) string {
	if len(part) == 0 {
		return ""
	}
	name := part[0]
	if len(part) > 1 {
		return " belongs to nothing"
	}
	isSocket, _ := path.Match(home.Sockets, name)
	runs := m.Run != nil
	switch {
	case slices.Contains(machineFiles, name), name == filepath.Base(m.Spec.Disks[0].Path) && e.Type().IsRegular():
		return ""
	case runs && (slices.Contains(runtimeFiles, name) || isSocket):
		return ""
	case runs && home.IsDisk(name) && e.Type() == fs.ModeSymlink: // its QEMU knows a layer by it
		return ""
	case slices.Contains(runtimeFiles, name) || isSocket:
		return fmt.Sprintf(" is left, and machine %s is %s", m.Name, m.State)
	}
	return " belongs to nothing"
}

// strayProcesses lists the processes of the home that belong to nothing. What must
// never be, even for a moment, fails the test.
func (l *killLoop) strayProcesses(w world) (open []string) {
	l.t.Helper()
	at := map[string]int{}
	writers := map[string]int{}
	for _, p := range l.h.qemus(l.t) {
		if other, there := at[p.dir]; there {
			l.fatalf("QEMU processes %d and %d both run in %s", other, p.pid, p.dir)
		}
		at[p.dir] = p.pid
		for _, f := range p.written(l.h.dir) {
			if other, there := writers[f]; there && other != p.pid && strings.HasSuffix(f, ".qcow2") {
				l.fatalf("QEMU processes %d and %d both write to %s", other, p.pid, f)
			}
			writers[f] = p.pid
			if slices.ContainsFunc(w.templates, func(t api.Template) bool { return l.layerPath(t) == f }) {
				open = append(open, fmt.Sprintf("QEMU process %d has the layer %s open for writing", p.pid, f))
			}
		}
		m := w.machine(filepath.Base(p.dir))
		if m == nil || m.Run == nil || m.Run.PID != p.pid {
			open = append(open, fmt.Sprintf("QEMU process %d in %s is nobody's", p.pid, p.dir))
		}
	}
	for _, m := range w.machines {
		if m.Run != nil && at[m.Dir] == 0 {
			open = append(open, fmt.Sprintf("machine %s is said to run, and has no process", m.Name))
		}
	}
	if d := l.h.daemons(l.t); len(d) != 1 {
		open = append(open, fmt.Sprintf("%d daemons: %v", len(d), d))
	}
	return open
}

func (l *killLoop) layerPath(t api.Template) string {
	if t.Parent == "" {
		return l.h.home.TemplateDisk(t.Digest)
	}
	return l.h.home.LayerDisk(t.Digest)
}

// sealed is an immutable file as it was first seen.
type sealed struct {
	size, mtime int64
	inode       uint64
	sum         string
}

// checkSealed compares what must never change with what it was: by its looks, and with
// full by reading it all.
func (l *killLoop) checkSealed(w world, full bool) {
	l.t.Helper()
	var files []string
	for _, t := range w.templates {
		files = append(files, l.layerPath(t))
	}
	for _, u := range w.units {
		files = append(files, filepath.Join(l.h.home.Unit(u.ID), home.RAMFile), filepath.Join(l.h.home.Unit(u.ID), home.StateFile))
	}
	now := map[string]sealed{}
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Lstat(f, &st); err != nil {
			l.fatalf("%s is listed, and: %v", f, err)
		}
		is := sealed{size: st.Size, mtime: st.Mtim.Nano(), inode: st.Ino}
		was, seen := l.sealed[f]
		if is.sum = was.sum; !seen || full {
			is.sum = l.sum(f)
		}
		if seen && is != was {
			l.fatalf("%s was changed: it is %+v, and was %+v", f, is, was)
		}
		// Whole images, and layers of stopped machines, are named by what is in them.
		if name := strings.TrimSuffix(filepath.Base(f), ".qcow2"); len(name) == 64 && name != is.sum {
			l.fatalf("%s has SHA-256 %s", f, is.sum)
		}
		now[f] = is
	}
	l.sealed = now
}

func (l *killLoop) sum(path string) string {
	l.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		l.t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// checkChain walks from a machine's own layer to its base, and compares with what
// the daemon says that it lies over.
func (l *killLoop) checkChain(w world, m api.Machine) {
	l.t.Helper()
	disk, base := m.Spec.Disks[0].Path, m.Base
	for {
		below, err := backing(disk)
		if err != nil {
			l.fatalf("machine %s: %v", m.Name, err)
		}
		if base == "" {
			if below != "" {
				l.fatalf("machine %s: %s lies over %s, and is said to lie over nothing", m.Name, disk, below)
			}
			return
		}
		i := slices.IndexFunc(w.templates, func(t api.Template) bool { return t.Digest == base })
		if i < 0 {
			l.fatalf("machine %s: its layer %s is not listed", m.Name, base)
		}
		if want := l.layerPath(w.templates[i]); below != want {
			l.fatalf("machine %s: %s lies over %s, and is said to lie over %s", m.Name, disk, below, want)
		}
		disk, base = below, w.templates[i].Parent
	}
}

// backing returns the path of the image that a qcow2 image names as its base, by the
// header of the specification; "" for none.
func backing(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	var h struct {
		Magic, Version uint32
		Offset         uint64
		Size           uint32
	}
	if err := binary.Read(f, binary.BigEndian, &h); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if h.Magic != 0x514649fb || h.Size > 1023 {
		return "", fmt.Errorf("%s: magic %x, a backing file name of %d bytes", path, h.Magic, h.Size)
	}
	if h.Offset == 0 {
		return "", nil
	}
	name := make([]byte, h.Size)
	if _, err := f.ReadAt(name, int64(h.Offset)); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return filepath.Join(filepath.Dir(path), string(name)), nil
}

// checkImage has the stock tool look at the disk of a machine that does not run, if it
// changed since it last did. Leaked clusters are no damage.
func (l *killLoop) checkImage(m api.Machine) {
	l.t.Helper()
	disk := m.Spec.Disks[0].Path
	st, err := os.Stat(disk)
	if err != nil {
		l.fatalf("machine %s: its overlay is lost: %v", m.Name, err)
	}
	k := l.known[m.ID]
	if m.Run != nil || k.checked.Equal(st.ModTime()) {
		return
	}
	const leaks = 3
	out, err := exec.CommandContext(l.t.Context(), "qemu-img", "check", "-f", "qcow2", disk).CombinedOutput()
	if status := exitStatus(err); status != 0 && status != leaks {
		l.fatalf("machine %s: qemu-img check %s: %v: %s", m.Name, disk, err, out)
	}
	k.checked = st.ModTime()
}

func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

// readMarks reads what was written to a machine's disk, also of one that runs: what
// its guest has flushed.
func (l *killLoop) readMarks(m api.Machine) {
	l.t.Helper()
	k := l.known[m.ID]
	if len(k.marks) == 0 {
		return
	}
	args := []string{"-r", "-U", "-f", "qcow2"}
	for slot, value := range k.marks {
		args = append(args, "-c", fmt.Sprintf("read -P %d %d %d", value, slot*markSize, markSize))
	}
	out, err := exec.CommandContext(l.t.Context(), "qemu-io", append(args, m.Spec.Disks[0].Path)...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) {
		l.fatalf("machine %s (%s): what was written to its disk %s is lost: %v\n%v: %s", m.Name, m.State, m.Spec.Disks[0].Path, k.marks, err, out)
	}
}
