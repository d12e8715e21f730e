package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/nearest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// machineFlags are the options of run and clone that say what a machine is.
type machineFlags struct {
	cpus         int
	memory       string
	diskSize     string
	bus          string
	cache        string
	accel        string
	machine      string
	vnc          string
	vncPassword  string
	vncTLS       string
	insecure     bool
	publish      []string
	hostname     string
	user         string
	sshKeys      []string
	noOwnKey     bool
	password     string
	passwordFile string
	userData     string
	userTemplate string
	noSeed       bool
	labels       []string
	ksm          bool
	balloon      bool
}

// choices are the words that an option takes.
var (
	buses    = []string{string(vm.BusVirtio), string(vm.BusVirtioSCSI), string(vm.BusSATA), string(vm.BusIDE)}
	caches   = []string{string(vm.CacheWriteback), string(vm.CacheNone), string(vm.CacheWritethrough), string(vm.CacheDirectsync), string(vm.CacheUnsafe)}
	accels   = []string{string(vm.AccelAuto), string(vm.AccelKVM), string(vm.AccelTCG)}
	machines = []string{vm.MachinePC, vm.MachineQ35}
	formats  = []string{"qcow2", "raw"}
)

func (f *machineFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.IntVar(&f.cpus, "cpus", 0, "number of virtual `CPUS` (default 1)")
	fs.StringVar(&f.memory, "memory", "", "memory `SIZE`: 512M, 2G; a number alone is MiB (default 1G)")
	fs.StringVar(&f.diskSize, "disk-size", "", "grow the disk to `SIZE` (default the image's)")
	choice(cmd, &f.bus, "bus", "disk `BUS`", buses)
	choice(cmd, &f.cache, "cache", "cache `MODE` of the disk", caches)
	choice(cmd, &f.accel, "accel", "what runs the guest's instructions, `ACCEL`", accels)
	choice(cmd, &f.machine, "machine", "machine `TYPE`", machines)
	fs.StringVar(&f.vnc, "vnc", "", "VNC: unix (a socket in the machine's folder), none, or `ADDR:DISPLAY` (default unix)")
	fs.StringVar(&f.vncPassword, "vnc-password", "", "`PASSWORD` that VNC asks for, of which 8 characters count; - asks for it on the terminal")
	fs.StringVar(&f.vncTLS, "vnc-tls", "", "`FOLDER` with VNC's server-cert.pem, server-key.pem and ca-cert.pem; without a password, viewers need a certificate of that CA")
	fs.BoolVar(&f.insecure, "insecure-graphics", false, "let everybody who reaches the address of --vnc use the screen, without password and TLS")
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "forward `[ADDR:][HOSTPORT:]PORT[/udp]` of the host to the guest's port; may be repeated")
	fs.StringVar(&f.hostname, "hostname", "", "the guest's host `NAME` (default the machine's name)")
	fs.StringVar(&f.user, "user", "", "`USER` to make in the guest (default the image's own)")
	fs.StringArrayVar(&f.sshKeys, "ssh-key", nil, "public key `FILE` (or the key itself) that may log in; may be repeated (default ~/.ssh/id_*.pub)")
	fs.BoolVar(&f.noOwnKey, "no-own-key", false, "do not let in this home's own key; then lamina ssh needs one of yours")
	fs.StringVar(&f.password, "password", "", "`PASSWORD` of the user; - asks for it on the terminal")
	fs.StringVar(&f.passwordFile, "password-file", "", "`FILE` whose first line is the password")
	fs.StringVar(&f.userData, "user-data", "", "cloud-init user-data `FILE`, which wins over the options here")
	fs.StringVar(&f.userTemplate, "user-data-template", "", "cloud-init user-data `FILE` that is filled in for each machine: {{.Name}}, {{.Hostname}}, {{.Index}} (from 1), {{.Count}}, {{.Template}}")
	fs.BoolVar(&f.noSeed, "no-seed", false, "give the guest no NoCloud seed; it keeps the image's own accounts")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "`KEY=VALUE` to tell the machine by; may be repeated")
	fs.BoolVar(&f.ksm, "ksm", false, "let the host merge equal pages of machines; says so where its kernel does not")
	fs.BoolVar(&f.balloon, "balloon", false, "give memory that the guest does not use back to the host; without warm starts and forks")
	exclusive(cmd, "password", "password-file")
	exclusive(cmd, "user-data", "user-data-template")
	for _, o := range []string{"ssh-key", "password", "password-file", "user", "user-data", "user-data-template", "hostname"} {
		exclusive(cmd, "no-seed", o)
	}
}

// choice adds an option that takes one of a few words.
func choice(cmd *cobra.Command, to *string, name, what string, words []string) {
	cmd.Flags().StringVar(to, name, "", what+": "+strings.Join(words, ", "))
	// The only error is an unknown option, which it cannot be.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// oneOf checks the value of an option of choice.
func oneOf(name, value string, words []string) error {
	if value == "" {
		return nil
	}
	for _, w := range words {
		if w == value {
			return nil
		}
	}
	hint := ""
	if near := nearest.Word(value, words); near != "" {
		hint = "; did you mean " + near + "?"
	}
	return usagef("--%s %s: it is one of %s%s", name, value, strings.Join(words, ", "), hint)
}

// config makes the machine's configuration of the options. Keys are told to
// the person, once.
func (f *machineFlags) config(ctx context.Context, a *app) (api.MachineConfig, error) {
	cfg := api.MachineConfig{
		CPUs: f.cpus, Bus: vm.Bus(f.bus), Cache: vm.Cache(f.cache), Accel: vm.Accel(f.accel), Machine: f.machine,
		VNC: f.vnc, VNCPassword: f.vncPassword, InsecureGraphics: f.insecure, Hostname: f.hostname, User: f.user, NoSeed: f.noSeed,
		KSM: f.ksm, Balloon: f.balloon,
	}
	if f.cpus < 0 {
		return cfg, usagef("--cpus %d: at least 1", f.cpus)
	}
	for _, c := range []struct {
		name, value string
		words       []string
	}{{"bus", f.bus, buses}, {"cache", f.cache, caches}, {"accel", f.accel, accels}, {"machine", f.machine, machines}} {
		if err := oneOf(c.name, c.value, c.words); err != nil {
			return cfg, err
		}
	}
	var err error
	if f.memory != "" {
		if cfg.Memory, err = vm.ParseMemory(f.memory); err != nil {
			return cfg, usagef("--memory: %w", err)
		}
	}
	if f.diskSize != "" {
		if cfg.DiskSize, err = vm.ParseSize(f.diskSize); err != nil {
			return cfg, usagef("--disk-size: %w", err)
		}
	}
	for _, p := range f.publish {
		fw, err := vm.ParseForward(p)
		if err != nil {
			return cfg, usagef("--publish: %w", err)
		}
		cfg.Forwards = append(cfg.Forwards, fw)
	}
	if cfg.Labels, err = parseLabels(f.labels); err != nil {
		return cfg, err
	}
	if err := f.graphics(ctx, a, &cfg); err != nil {
		return cfg, err
	}
	if f.noSeed {
		return cfg, nil
	}
	if file := f.userData + f.userTemplate; file != "" { // one of them
		if cfg.UserData, err = readSmall(file); err != nil {
			return cfg, err
		}
		cfg.UserDataTemplate = f.userTemplate != ""
	}
	if cfg.Password, err = f.readPassword(ctx, a); err != nil {
		return cfg, err
	}
	cfg.SSHKeys, err = f.keys(a, cfg.Password != "")
	return cfg, err
}

// graphics completes what is chosen of the screen, and refuses one that
// everybody may use unless that was said.
func (f *machineFlags) graphics(ctx context.Context, a *app, cfg *api.MachineConfig) error {
	if f.vncTLS != "" {
		dir, err := filepath.Abs(f.vncTLS)
		if err != nil {
			return err
		}
		cfg.VNCTLS = dir
	}
	host, _, err := net.SplitHostPort(f.vnc)
	if err == nil && (vm.Display{Type: vm.DisplayVNC, Listen: host}).Exposed() && f.vncPassword == "" && f.vncTLS == "" && !f.insecure {
		return usagef("--vnc %s: anybody who reaches that address could use the machine's screen and keyboard: set --vnc-password or --vnc-tls, or say --insecure-graphics", f.vnc)
	}
	if f.vncPassword == "-" {
		cfg.VNCPassword, err = a.askPassword(ctx, "VNC")
		return err
	}
	return nil
}

// readPassword returns the password, "" where none was asked for.
func (f *machineFlags) readPassword(ctx context.Context, a *app) (string, error) {
	switch {
	case f.passwordFile != "":
		b, err := readSmall(f.passwordFile)
		if err != nil {
			return "", err
		}
		line, _, _ := strings.Cut(string(b), "\n")
		if line = strings.TrimSuffix(line, "\r"); line == "" {
			return "", fmt.Errorf("%s: its first line, the password, is empty", f.passwordFile)
		}
		return line, nil
	case f.password == "-":
		return a.askPassword(ctx, "the guest")
	}
	return f.password, nil
}

// askPassword asks for the password of something twice on the terminal, without echo.
func (a *app) askPassword(ctx context.Context, of string) (string, error) {
	fd := int(a.stdin.Fd())
	if !term.IsTerminal(fd) {
		return "", usagef("a password of -: there is no terminal to ask on")
	}
	// Ctrl-C must not leave the terminal without echo.
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("the terminal: %w", err)
	}
	defer func() { _ = term.Restore(fd, before) }()
	var got [2]string
	for i, prompt := range []string{"Password for " + of + ": ", "The same again: "} {
		_, _ = fmt.Fprint(a.stderr, prompt)
		b, err := readHidden(ctx, fd)
		_, _ = fmt.Fprintln(a.stderr)
		if err != nil {
			return "", fmt.Errorf("the password: %w", err)
		}
		got[i] = string(b)
	}
	switch {
	case got[0] != got[1]:
		return "", errors.New("the two passwords differ")
	case got[0] == "":
		return "", errors.New("the password is empty; leave --password out for none")
	}
	return got[0], nil
}

// readHidden is term.ReadPassword that ctx ends. The read itself cannot be
// ended: it waits for a key until the program ends, which is soon.
func readHidden(ctx context.Context, fd int) ([]byte, error) {
	type line struct {
		text []byte
		err  error
	}
	read := make(chan line, 1)
	go func() {
		b, err := term.ReadPassword(fd)
		read <- line{b, err}
	}()
	select {
	case l := <-read:
		return l.text, l.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// maxSmall bounds the files that are sent to the daemon whole, in bytes.
const maxSmall = 1 << 20

// readSmall reads a file of at most maxSmall bytes.
func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSmall {
		return nil, fmt.Errorf("%s: longer than 1 MiB", name)
	}
	return b, nil
}

// imageRef returns an image as the daemon is to be told: a file by its absolute
// path, as the daemon works in another folder; anything else (a template, a
// name of the catalog, a URL) as it is.
func imageRef(ref string) (string, error) {
	if ref == "" {
		return "", usagef("the image's name is empty")
	}
	if strings.Contains(ref, "://") {
		return ref, nil
	}
	if st, err := os.Stat(ref); err == nil && !st.IsDir() {
		return filepath.Abs(ref)
	} else if strings.ContainsRune(ref, filepath.Separator) {
		if err == nil {
			return "", fmt.Errorf("%s is a folder, not an image", ref)
		}
		return "", err
	}
	return ref, nil
}

// waitFlags are the options of what follows a boot.
type waitFlags struct {
	noWait  bool
	timeout time.Duration
}

func (f *waitFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "return when the guest executes, not at its login prompt")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "give up on the login prompt after `TIME`, such as 90s or 5m (default 10m, 40m without KVM)")
}

func (f *waitFlags) check() error {
	if f.timeout < 0 {
		return usagef("--timeout %s: it cannot be negative", f.timeout)
	}
	return nil
}
