package qemuimg

import (
	"strings"

	"github.com/lamina-vm/lamina/format/all"
)

const versionText = "qemu-img version " + Compatible + " (Lamina)\n"

// help prints the overview, for `--help` with or without a verb.
func (t *tool) help() int {
	var b strings.Builder
	b.WriteString(versionText)
	b.WriteString("usage: " + t.prog + " [standard options] command [command options]\n")
	b.WriteString(helpStandard)
	for _, v := range verbs() {
		b.WriteString("  " + v.name + " " + v.syntax + "\n")
	}
	b.WriteString(helpParameters)
	b.WriteString("\nSupported formats:")
	for _, d := range all.Drivers() {
		b.WriteString(" " + d.Name())
	}
	b.WriteString("\n\nExample:\n  " + t.prog + " create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n")
	t.printf("%s", b.String())
	return exitOK
}

const helpStandard = `Work with disk images as qemu-img does

    '-h', '--help'       show this help
    '-V', '--version'    show the version

Command syntax:
`

const helpParameters = `
Parameters of several commands:
  'filename' is the image; 'file:NAME' and './NAME' are file names too
  'fmt', 'output_fmt', 'backing_fmt' are image formats. Without -f the format
    is guessed from the content, which is dangerous for raw images that a guest
    can write
  'cache', 'src_cache' are cache modes: none, writeback (the default),
    writethrough, directsync, unsafe (the default for the target of convert)
  'size' is a number of bytes, or a number with a suffix: k, M, G, T, P or E,
    in powers of 1024; a fraction is allowed
  'options' is a list name=value[,name=value...]; '-o help' shows the names
  '-q' prints nothing but errors; '-p' shows progress (convert)
  '-U' opens without locks an image that another process may be writing
  '--output' is human or json
  '--image-opts' takes driver=FMT,file.filename=NAME in place of a file name

Parameters of create:
  '-b' names the backing file, relative to the new image; '-F' is its format
  '-u' records the backing file without opening it

Parameters of check:
  '-r leaks' frees clusters that nothing uses; '-r all' repairs everything it
    can, and may choose wrongly where an image contradicts itself

Parameters of convert:
  '-c' compresses (qcow2)
  '-n' writes into an existing target; '--target-is-zero' says that it is
    all zeros
  '-S' is the least run of zeros that becomes a hole (default 4k); 0 writes
    everything
  '-m' is the number of requests under way (default 8); '-W' allows them to be
    written out of order; '-r' limits the bytes written a second
  '-B' makes an overlay of backing_file, which holds what differs from it
  '-C' lets the kernel copy; '--salvage' goes on over what cannot be read

Parameters of resize:
  '+size' grows, '-size' shrinks by that much
  '--shrink' is needed to make an image smaller. It is refused where a
    partition would be cut, unless '--force-shrink' is given
  '--fix-gpt' moves the backup of a GUID partition table to the new end
`
