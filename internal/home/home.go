// Package home holds every file name of Lamina's state: where a home lies and
// what each file in it is called. Nothing else builds such a path.
package home

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Env is the variable that puts everything in one folder.
const Env = "LAMINA_HOME"

// Home is the set of folders of one installation. Two homes never meet.
type Home struct {
	Data  string // templates, machines, database, the daemon's lock
	Cache string // downloads, seeds that can be made again
	Run   string // sockets
}

// Find returns the home of this process: LAMINA_HOME, else the system folders
// for root, else the XDG ones. It creates nothing.
func Find() (Home, error) {
	if h := os.Getenv(Env); h != "" {
		abs, err := filepath.Abs(h)
		if err != nil {
			return Home{}, fmt.Errorf("%s=%s: %w", Env, h, err)
		}
		return At(abs), nil
	}
	if os.Geteuid() == 0 {
		return Home{Data: "/var/lib/lamina", Cache: "/var/cache/lamina", Run: "/run/lamina"}, nil
	}
	data, err := xdg("XDG_DATA_HOME", ".local/share")
	if err != nil {
		return Home{}, err
	}
	cache, err := xdg("XDG_CACHE_HOME", ".cache")
	if err != nil {
		return Home{}, err
	}
	run := runtimeDir(os.Getenv("XDG_RUNTIME_DIR"), filepath.Join("/run/user", strconv.Itoa(os.Geteuid())))
	if run == "" {
		run = cache
	}
	return Home{Data: filepath.Join(data, "lamina"), Cache: filepath.Join(cache, "lamina"), Run: filepath.Join(run, "lamina")}, nil
}

// At returns the home in one folder.
func At(dir string) Home {
	return Home{Data: dir, Cache: filepath.Join(dir, "cache"), Run: filepath.Join(dir, "run")}
}

// OneFolder reports whether everything lies in one folder, which a person named
// and which may hold other things of theirs.
func (h Home) OneFolder() bool { return h.Cache == At(h.Data).Cache }

// runtimeDir is the folder of a user's sockets: what XDG_RUNTIME_DIR says, else
// where it leads in a session, if that is the user's. Cron and su do not set
// the variable and are to find the same daemon for all that. "" is none.
func runtimeDir(env, session string) string {
	if filepath.IsAbs(env) {
		return env
	}
	st, err := os.Stat(session)
	if err != nil || !st.IsDir() {
		return ""
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
		return ""
	}
	return session
}

func xdg(env, fallback string) (string, error) {
	if v := os.Getenv(env); filepath.IsAbs(v) {
		return v, nil
	}
	h, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no home directory: set HOME or %s: %w", Env, err)
	}
	return filepath.Join(h, fallback), nil
}

// The daemon's files. What keeps a second daemon from the data lies beside the
// data: the folder of the sockets is another one where XDG_RUNTIME_DIR is not
// set (cron, su), and is emptied when its user logs out.
func (h Home) Socket() string    { return filepath.Join(h.Run, "laminad.sock") }
func (h Home) Lock() string      { return filepath.Join(h.Data, "laminad.lock") }
func (h Home) StartLock() string { return filepath.Join(h.Run, "start.lock") }
func (h Home) DaemonLog() string { return filepath.Join(h.Data, "laminad.log") }
func (h Home) Database() string  { return filepath.Join(h.Data, "state.db") }

// Autostarted holds the boot id of the host's boot in which machines were last
// started by themselves.
func (h Home) Autostarted() string { return filepath.Join(h.Data, "autostarted") }

// Key is the private SSH key of this home, which its machines let in; the
// public one lies beside it with ".pub" behind the name.
func (h Home) Key() string { return filepath.Join(h.Data, "id_ed25519") }

// Downloads is the folder of fetched images.
func (h Home) Downloads() string { return filepath.Join(h.Cache, "downloads") }

// KVMFile, in the cache folder, remembers whether KVM runs machines on this
// host since it was booted.
const KVMFile = "kvm.json"

// QEMUFile, in the cache folder, remembers what the host's QEMU says of itself.
const QEMUFile = "qemu.json"

// Images is the folder of disks that were asked for without a path: a
// person's, so nothing removes them but the person.
func (h Home) Images() string { return filepath.Join(h.Data, "images") }

// Templates is the folder of template images, each named by its digest.
func (h Home) Templates() string { return filepath.Join(h.Data, "templates") }

// TemplateDisk is the image of the template with the given SHA-256 in hex.
func (h Home) TemplateDisk(digest string) string {
	return filepath.Join(h.Templates(), digest+".qcow2")
}

// Layers is the folder of the images that lie over a template: what machines
// were at some instant. It is as deep in the home as a machine's folder is, so that a
// relative name of a base means the same in both, and a machine's own layer
// can become one without a change to it.
func (h Home) Layers() string { return filepath.Join(h.Data, "layers", "disks") }

// LayerDisk is the image of a layer that lies over another one.
func (h Home) LayerDisk(key string) string { return filepath.Join(h.Layers(), key+".qcow2") }

// Warm is the folder of warm units' folders.
func (h Home) Warm() string { return filepath.Join(h.Data, "warm") }

// Unit is the folder of a warm unit, by its id.
func (h Home) Unit(id string) string { return filepath.Join(h.Warm(), id) }

// The files of a warm unit's folder, and of the folder of a machine that is
// being forked.
const (
	RAMFile   = "frozen.ram"
	StateFile = "frozen.state"
)

// Machines is the folder of machine folders.
func (h Home) Machines() string { return filepath.Join(h.Data, "machines") }

// Machine is the folder of a machine, by its id (not its name, so that a
// rename moves nothing and every path stays short enough for a socket).
func (h Home) Machine(id string) string { return filepath.Join(h.Machines(), id) }

// The files of a machine's folder.
const (
	DiskFile      = "disk.qcow2" // see also DiskName
	SeedFile      = "seed.iso"
	SerialLogFile = "serial.log"
	SerialLogOld  = "serial.log.1" // of the start before
	QEMULogFile   = "qemu.log"
	NVRAMFile     = "nvram.fd" // the machine's UEFI variables
	TPMDir        = "tpm"      // what its TPM keeps
	KnownHosts    = "known_hosts"
	SSHUserFile   = "ssh_user"  // whom the guest told ssh to log in as
	SecretsFile   = "seed.json" // of a seed that is made at the first start
	ScratchDir    = "scratch"   // a copy of the machine that is gone soon
)

// The runtime files of a machine's folder: gone when it is stopped.
const (
	PIDFile    = "qemu.pid"
	RunFile    = "run.json" // vm.RunInfo and the spec that runs
	QMPSocket  = "qmp.sock"
	SerialSock = "serial.sock"
	VNCSocket  = "vnc.sock"
	SPICESock  = "spice.sock"
	TPMSocket  = "tpm.sock"
	// Sockets is the pattern (path.Match) of all of them: those above, and those
	// of channels and shared folders, which are numbered.
	Sockets = "*.sock"
	// ScreenFiles is the pattern (os.CreateTemp, path.Match) of a picture of
	// the screen on its way from QEMU to the one who asked for it.
	ScreenFiles = "screen-*.ppm"
)

// DiskName is what a machine's own layer is called that has been frozen so many
// times: DiskFile, disk-1.qcow2, ...
func DiskName(generation int) string {
	if generation == 0 {
		return DiskFile
	}
	return fmt.Sprintf("disk-%d.qcow2", generation)
}

// IsDisk reports whether DiskName makes the name.
func IsDisk(name string) bool {
	n, ok := strings.CutPrefix(name, "disk-")
	n, suffix := strings.CutSuffix(n, ".qcow2")
	if !ok || !suffix {
		return name == DiskFile
	}
	i, err := strconv.Atoi(n)
	return err == nil && DiskName(i) == name && i > 0
}
