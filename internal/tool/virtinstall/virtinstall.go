// Package virtinstall is the work-alike of virt-install: its options with all
// their sub-options, its defaults by guest OS, its messages and exit statuses.
//
// A command line becomes a libvirt domain document (package vm/domxml), step by
// step: what the options say, what the guest OS wants, what the installation
// needs. That document is printed (--print-xml), handed to a libvirtd
// (--connect), or read as a [vm.Spec] that the daemon runs on plain QEMU.
// Nothing outside this process is changed before the document is complete and
// checked; with --print-xml and --dry-run nothing is changed at all.
//
//	args.go              the command line: flags, usage, errors
//	option.go            how an option with sub-options becomes XML: the engine
//	options_*.go         the tables, a file by the noun
//	guest.go             the machine in the making
//	host*.go             what it is made for: a libvirtd, or QEMU alone
//	defaults*.go         what the guest OS and virt-install add
//	storage*.go          disks: what exists, what is to be made
//	install*.go          where the guest comes from: import, ISO, tree, PXE, cloud-init, unattended
//	run*.go              making it: storage, definition, start, console, wait
package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Streams are the standard streams of a run.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// The exit statuses of virt-install.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a command line that does not parse: the usage is shown with it
// and the exit status is 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// Main runs one command line, without the program's name, and returns the exit
// status. It undoes what it made when ctx ends before the machine runs.
func Main(ctx context.Context, args []string, std Streams) int {
	err := run(ctx, args, std)
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(std.Err, "%s\nvirt-install: error: %s\n", usageLine, usage.text)
		return exitUsage
	default:
		_, _ = fmt.Fprintf(std.Err, "ERROR    %v\n", err)
		return exitFailed
	}
}

const usageLine = "usage: virt-install --name NAME --memory MB STORAGE INSTALL [options]"
