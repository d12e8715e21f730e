package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/nearest"
	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/vm"
)

// deviceHelp is said by the verbs that change a machine's devices.
const deviceHelp = `A machine that runs is changed at once, and every machine so that the change is
there after its next start. --live leaves the next start as it is, --config the
machine that runs.`

// scopeFlags are the options of what changes devices.
func scopeFlags(cmd *cobra.Command, to *api.Scope) {
	cmd.Flags().BoolVar(&to.Live, "live", false, "only the machine as it runs")
	cmd.Flags().BoolVar(&to.Config, "config", false, "only what its next start takes")
	exclusive(cmd, "live", "config")
}

// deviceVerb finishes a verb that changes one machine's devices: do returns the
// machine as it is then.
func deviceVerb(a *app, cmd *cobra.Command, args cobra.PositionalArgs, do func(ctx context.Context, b Backend, args []string) (api.Machine, error)) *cobra.Command {
	var asJSON bool
	cmd.Args = args
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b, err := a.backend(cmd.Context())
		if err != nil {
			return err
		}
		m, err := do(cmd.Context(), b, args)
		if err != nil {
			return machineHint(cmd.Context(), b, args[0], err)
		}
		if asJSON {
			return a.printJSON(m)
		}
		return a.printDisks(m)
	}
	jsonFlag(cmd, &asJSON)
	connectFlag(cmd, a)
	return cmd
}

// printDisks shows the drives that the machine's next start takes.
func (a *app) printDisks(m api.Machine) error {
	t := table{}
	t.add("DRIVE", "DEVICE", "BUS", "FORMAT", "CACHE", "PATH")
	for i, name := range m.Spec.DiskNames() {
		d := m.Spec.Disks[i]
		t.add(name, string(d.Device), string(d.Bus), d.Format, string(d.Cache), d.Path)
	}
	return t.print(a.stdout)
}

func newAttach(a *app) *cobra.Command {
	var req api.AttachRequest
	var disk string
	cmd := &cobra.Command{
		Use:     "attach NAME --disk PATH[,KEY=VALUE...] [OPTIONS]",
		Aliases: []string{"attach-disk"},
		Short:   "Give a machine another disk",
		Long: `Give a machine another disk. The image stays where it is and is not removed with
the machine.

` + deviceHelp + `

The keys are format, bus, cache, io, discard, device (disk, cdrom, floppy, lun),
target, serial, readonly, shareable, boot_order, detect_zeroes, iothread,
wwn, path. Without format it is what the file's name ends in: the content of an
image that a guest writes to is never trusted for that.`,
		Example: `  lamina attach web --disk data.qcow2
  lamina attach web --disk /dev/vg/data,bus=virtio-scsi,cache=none --config
  lamina attach web --disk tools.iso,device=cdrom`,
		ValidArgsFunction: completeMachines(a, false),
	}
	cmd.Flags().StringVar(&disk, "disk", "", "the image's `PATH` and what is chosen of the drive")
	_ = cmd.MarkFlagRequired("disk") // it is there
	scopeFlags(cmd, &req.Scope)
	return deviceVerb(a, cmd, words("NAME"), func(ctx context.Context, b Backend, args []string) (api.Machine, error) {
		var err error
		if req.Disk, err = parseDisk(disk); err != nil {
			return api.Machine{}, usageError{fmt.Errorf("--disk: %w", err)}
		}
		return b.Attach(ctx, args[0], req)
	})
}

// diskKeys are the words of --disk; each says what is wrong with its value.
var diskKeys = map[string]func(d *vm.Disk, value string) error{
	"path":          func(d *vm.Disk, v string) error { d.Path = v; return nil },
	"format":        func(d *vm.Disk, v string) error { d.Format = v; return nil },
	"bus":           func(d *vm.Disk, v string) error { d.Bus = vm.Bus(v); return nil },
	"cache":         func(d *vm.Disk, v string) error { d.Cache = vm.Cache(v); return nil },
	"io":            func(d *vm.Disk, v string) error { d.IO = vm.IO(v); return nil },
	"device":        func(d *vm.Disk, v string) error { d.Device = vm.DiskDevice(v); return nil },
	"target":        func(d *vm.Disk, v string) error { d.Target = v; return nil },
	"serial":        func(d *vm.Disk, v string) error { d.Serial = v; return nil },
	"wwn":           func(d *vm.Disk, v string) error { d.WWN = v; return nil },
	"detect_zeroes": func(d *vm.Disk, v string) error { d.DetectZeroes = v; return nil },
	"readonly":      func(d *vm.Disk, v string) error { return yesNo(&d.ReadOnly, v) },
	"shareable":     func(d *vm.Disk, v string) error { return yesNo(&d.Shareable, v) },
	"boot_order":    func(d *vm.Disk, v string) error { return number(&d.BootIndex, v) },
	"iothread":      func(d *vm.Disk, v string) error { return number(&d.IOThread, v) },
	"discard": func(d *vm.Disk, v string) error {
		switch v {
		case "unmap":
			d.Discard = true
		case "ignore":
			d.Discard = false
		default:
			return fmt.Errorf("it is unmap or ignore")
		}
		return nil
	},
}

func yesNo(to *bool, v string) error {
	switch v {
	case "yes", "on", "true", "1", "":
		*to = true
	case "no", "off", "false", "0":
		*to = false
	default:
		return fmt.Errorf("it is yes or no")
	}
	return nil
}

func number(to *int, v string) (err error) {
	if *to, err = strconv.Atoi(v); err != nil || *to < 0 {
		return fmt.Errorf("it is not a number")
	}
	return nil
}

// parseDisk reads the value of --disk.
func parseDisk(text string) (vm.Disk, error) {
	var d vm.Disk
	for i, part := range strings.Split(text, ",") {
		key, value, has := strings.Cut(part, "=")
		if i == 0 && (!has || diskKeys[key] == nil) {
			d.Path = part
			continue
		}
		set := diskKeys[key]
		if set == nil {
			var known []string
			for k := range diskKeys {
				known = append(known, k)
			}
			hint := ""
			if near := nearest.Word(key, known); near != "" {
				hint = "; did you mean " + near + "?"
			}
			return d, fmt.Errorf("unknown key %q%s", key, hint)
		}
		if err := set(&d, value); err != nil {
			return d, fmt.Errorf("%s: %w", part, err)
		}
	}
	if d.Path == "" && d.Device != vm.DeviceCDROM && d.Device != vm.DeviceFloppy {
		return d, fmt.Errorf("%q names no image", text)
	}
	if d.Path != "" {
		path, err := filepath.Abs(d.Path)
		if err != nil {
			return d, err
		}
		d.Path = path
	}
	if d.Format == "" {
		d.Format = formatOf(d)
	}
	if d.Format == "" {
		return d, fmt.Errorf("%s: say its format (format=raw or format=qcow2): its name does not", d.Path)
	}
	return d, nil
}

// formatOf is the format that an image's name says, "" where it says none.
func formatOf(d vm.Disk) string {
	switch ext := strings.ToLower(filepath.Ext(d.Path)); {
	case d.Path == "", d.Device == vm.DeviceCDROM, d.Device == vm.DeviceFloppy, strings.HasPrefix(d.Path, "/dev/"):
		return "raw"
	case ext == ".qcow2", ext == ".vmdk", ext == ".vdi", ext == ".vhdx", ext == ".qed":
		return ext[1:]
	case ext == ".raw", ext == ".img", ext == ".iso":
		return "raw"
	}
	return ""
}

func newDetach(a *app) *cobra.Command {
	var req api.DetachRequest
	cmd := &cobra.Command{
		Use:     "detach NAME DRIVE [OPTIONS]",
		Aliases: []string{"detach-disk"},
		Short:   "Take a disk from a machine",
		Long: `Take a disk from a machine; the image stays. DRIVE is its name as ` + "`lamina info`" + `
shows it, its path or its serial number. A guest is asked to let go of it first,
for half a minute.

` + deviceHelp,
		Example:           "  lamina detach web vdb\n  lamina detach web /srv/data.qcow2 --config",
		ValidArgsFunction: completeDrives(a),
	}
	scopeFlags(cmd, &req.Scope)
	return deviceVerb(a, cmd, words("NAME", "DRIVE"), func(ctx context.Context, b Backend, args []string) (api.Machine, error) {
		req.Disk = driveName(args[1])
		return b.Detach(ctx, args[0], req)
	})
}

// driveName is a drive as the daemon is to be told, which works in another
// folder.
func driveName(word string) string {
	if strings.ContainsRune(word, filepath.Separator) {
		if abs, err := filepath.Abs(word); err == nil {
			return abs
		}
	}
	return word
}

func newResize(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "resize NAME DRIVE SIZE [OPTIONS]",
		Aliases: []string{"blockresize"},
		Short:   "Grow a disk of a machine",
		Long: `Grow a disk of a machine to SIZE, while it runs or not. The guest of a running one
is told; its partitions and file systems are its own to grow. The backup of a GUID
partition table moves to the new end where the machine does not run. A disk is never
made smaller.`,
		Example:           "  lamina resize web vda 40G",
		ValidArgsFunction: completeDrives(a),
	}
	return deviceVerb(a, cmd, words("NAME", "DRIVE", "SIZE"), func(ctx context.Context, b Backend, args []string) (api.Machine, error) {
		size, err := vm.ParseSize(args[2])
		if err != nil {
			return api.Machine{}, usageError{err}
		}
		m, err := b.Resize(ctx, args[0], api.ResizeRequest{Disk: driveName(args[1]), Size: size})
		if err == nil {
			a.note("%s of %s has %s now", args[1], args[0], progress.Bytes(size))
		}
		return m, err
	})
}

func newMedia(a *app) *cobra.Command {
	var req api.MediaRequest
	var eject bool
	cmd := &cobra.Command{
		Use:     "media NAME [FILE] [OPTIONS]",
		Aliases: []string{"change-media"},
		Short:   "Put a medium into a machine's CD-ROM drive, or take it out",
		Long: `Put FILE into a machine's CD-ROM or floppy drive, in the place of what is there, or
take that out with --eject.

` + deviceHelp,
		Example:           "  lamina media web drivers.iso\n  lamina media web --eject\n  lamina media web disk2.img --drive fda",
		ValidArgsFunction: completeMachines(a, false),
	}
	cmd.Flags().BoolVar(&eject, "eject", false, "leave the drive empty")
	cmd.Flags().StringVar(&req.Drive, "drive", "", "`DRIVE` of a machine with several")
	cmd.Flags().StringVar(&req.Format, "format", "", "`FORMAT` of the file (default raw)")
	cmd.Flags().BoolVarP(&req.Force, "force", "f", false, "also where the guest has locked the drive")
	scopeFlags(cmd, &req.Scope)
	return deviceVerb(a, cmd, cobra.RangeArgs(1, 2), func(ctx context.Context, b Backend, args []string) (api.Machine, error) {
		switch {
		case len(args) == 2 && eject:
			return api.Machine{}, usagef("a file and --eject exclude each other")
		case len(args) == 1 && !eject:
			return api.Machine{}, usagef("media: FILE is missing; --eject takes the medium out")
		case len(args) == 2:
			path, err := filepath.Abs(args[1])
			if err != nil {
				return api.Machine{}, err
			}
			req.Path = path
		}
		return b.Media(ctx, args[0], req)
	})
}

// completeDrives completes a machine's name and then one of its drives.
func completeDrives(a *app) cobra.CompletionFunc {
	machines := completeMachines(a, false)
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return machines(cmd, args, word)
		}
		b, err := a.backend(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		m, err := b.Machine(cmd.Context(), args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return m.Spec.DiskNames(), cobra.ShellCompDirectiveNoFileComp
	}
}
