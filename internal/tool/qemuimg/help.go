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
	if t.extended() {
		b.WriteString("\nBeyond qemu-img:\n")
		for _, v := range ownVerbs() {
			b.WriteString("  " + v.name + " " + v.syntax + "\n")
		}
	}
	b.WriteString(helpParameters)
	if t.extended() {
		b.WriteString(helpOwn)
	}
	b.WriteString("\nSupported formats:")
	for _, d := range all.Drivers() {
		b.WriteString(" " + d.Name())
	}
	b.WriteString("\n\nExample:\n  " + t.prog + " create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n")
	t.printf("%s", b.String())
	return exitOK
}

const helpStandard = `Work with disk images as qemu-img does

    '-h', '--help'       show this help, also behind a command
    '-V', '--version'    show the version
    '-T', '--trace'      [[enable=]PATTERN][,events=FILE][,file=FILE]
                         accepted for scripts: there are no trace events

Command syntax:
`

const helpParameters = `
Parameters of several commands:
  'filename' is the image; 'file:NAME' and './NAME' are file names too
  'objectdef' defines an object by its properties: a 'secret' with the key of an
    encrypted image
  'fmt', 'output_fmt', 'backing_fmt' are image formats. Without -f the format
    is guessed from the content, which is dangerous for raw images that a guest
    can write
  'cache', 'src_cache' are cache modes: none, writeback (the default),
    writethrough, directsync, unsafe (the default for the target of convert)
  'size' is a number of bytes, or a number with a suffix: k, M, G, T, P or E,
    in powers of 1024; a fraction is allowed
  'options' is a list name=value[,name=value...]; '-o help' shows the names
  'snapshot_param' is the ID or name of an internal snapshot, or
    snapshot.id=ID,snapshot.name=NAME
  '-q' prints nothing but errors; '-p' shows progress
  '-U' opens without locks an image that another process may be writing
  '--output' is human or json
  '--image-opts' takes block options such as driver=FMT,file.filename=NAME in
    place of a file name; '--target-image-opts' does for the target

Parameters of bench:
  '-c' is the number of requests (75000), '-d' how many are under way (64),
    '-s' the bytes of each (4096), '-o' where the first is and '-S' how far the
    next is from it; '-w' writes them, filled with the byte '--pattern'
  '--flush-interval' flushes after so many writes, and waits for those under
    way unless '--no-drain' is given
  '-i' is threads, native or io_uring, '-n' stands for native: how the stock
    tool reaches the file; here it is always threads

Parameters of bitmap:
  '--add', '--remove', '--clear', '--enable', '--disable' and '--merge SOURCE'
    are done in the order in which they are given
  '-g' is the granularity of a new bitmap; '-b' and '-F' are another image to
    merge from

Parameters of check:
  '-r leaks' frees clusters that nothing uses; '-r all' repairs everything it
    can, and may choose wrongly where an image contradicts itself

Parameters of commit:
  '-b' is the image of the chain that receives the content; '-d' leaves the
    image as it is afterwards

Parameters of compare:
  '-f' and '-F' are the formats of the first and of the second image
  '-s' finds different sizes and different allocation too
  The exit status is 0 for images with the same content, 1 for others, and
    above 1 for an error

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
  '--bitmaps' copies persistent bitmaps

Parameters of create:
  '-b' names the backing file, relative to the new image; '-F' is its format
  '-u' records the backing file without opening it

Parameters of dd:
  'if' and 'of' are the images, 'bs' the block size (default 512); 'count' is
    the number of blocks, 'skip' the number of blocks of the input before them

Parameters of measure:
  '--size' measures an empty image of that size, not the copy of an image

Parameters of rebase:
  '-b' is the new backing file, '' for none, and '-F' its format
  '-u' records it without looking at the content: for a backing file that was
    moved or renamed

Parameters of resize:
  '+size' grows, '-size' shrinks by that much
  '--shrink' is needed to make an image smaller. It is refused where a
    partition would be cut, unless '--force-shrink' is given
  '--fix-gpt' moves the backup of a GUID partition table to the new end

Parameters of snapshot:
  '-l' lists the internal snapshots, '-c' makes one, '-a' goes back to one and
    '-d' deletes one
`

const helpOwn = `
Beyond qemu-img:
  create, info and check take several images
  '--untrusted' refuses an image that names other files, for images from outside;
    not with create, commit and rebase
  convert '--progress=json' writes events on standard error
  map '--picture' draws what lies where; '--svg=FILE' and '--png=FILE' draw into
    files
  info '--usage' shows what each structure of the file takes
  sparsify gives back the space of stored zeros, in place
  cp copies an image file with its holes, or shares its storage; '-n' replaces
    nothing, '-u' keeps a relative backing name that leads elsewhere
  tree shows which image lies over which, of images or folders
`
