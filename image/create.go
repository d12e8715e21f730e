package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strconv"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/internal/underlay"
	"github.com/lamina-vm/lamina/protocol/file"
)

// CreateOptions are the choices of [Create].
type CreateOptions struct {
	// Format is the format's name. Empty means raw.
	Format string
	// Size is the virtual size in bytes; it is rounded up to 512.
	Size int64
	// SizeFromBacking takes the backing file's virtual size instead of Size.
	SizeFromBacking bool
	// Values are the format's own options, spelled as for `qemu-img -o`.
	Values map[string]string
	// BackingFile is the name to record, "" for none. It is relative to the
	// folder of the new image, not to the working directory.
	BackingFile string
	// BackingFormat is the backing file's format. It must be given: a
	// format that is guessed at each start can be changed by the guest.
	BackingFormat string
	// Unchecked records the backing file without opening it.
	Unchecked bool
	// Secrets resolves the names of keys of encrypted images. nil is none.
	Secrets format.Secrets
	// NoFlush returns before the new image is safe from a power loss.
	NoFlush bool
	// Fill leaves the new image marked as unfinished: it is going to be
	// opened with [Options].Fill.
	Fill bool

	unsafe bool // with Fill: no barrier behind the mark
}

// ErrNoBackingFormat is for a backing file without its format.
var ErrNoBackingFormat = errors.New("backing file specified without backing format")

// ErrNoSize is for a new image without a size.
var ErrNoSize = errors.New("image creation needs a size")

// NoBackingFormatError matches [ErrNoBackingFormat] and says what the backing
// file's format seems to be.
type NoBackingFormatError struct{ Detected string } // "" where it was not opened

// Error names the detected format.
func (e *NoBackingFormatError) Error() string {
	if e.Detected == "" {
		return ErrNoBackingFormat.Error()
	}
	return fmt.Sprintf("%v: it looks like %s", ErrNoBackingFormat, e.Detected)
}

// Is makes the error match [ErrNoBackingFormat].
func (e *NoBackingFormatError) Is(target error) bool { return target == ErrNoBackingFormat }

// NoBackingSupportError is for a backing file in a format that has none.
type NoBackingSupportError struct{ Format string }

// Error names the format.
func (e *NoBackingSupportError) Error() string {
	return fmt.Sprintf("format %s has no backing files", e.Format)
}

// Is makes the error match [block.ErrUnsupported].
func (e *NoBackingSupportError) Is(target error) bool { return target == block.ErrUnsupported }

// CreatePlan is an image that can be made: names, formats and the backing
// file have been checked, nothing has been written.
type CreatePlan struct {
	Name string
	Size int64 // virtual size in bytes

	opts    CreateOptions
	drv     format.Driver
	path    string
	data    string // path of the external data file, if hasData
	hasData bool
	// below are the files of the backing chain, or only the backing file
	// where it was not opened.
	below []string
}

// PlanCreate checks what Create would do, and opens the backing file for its
// size and format.
func PlanCreate(ctx context.Context, name string, opts CreateOptions) (*CreatePlan, error) {
	if opts.Format == "" {
		opts.Format = rawName
	}
	p := &CreatePlan{Name: name, Size: opts.Size, opts: opts, drv: all.Find(opts.Format)}
	if p.drv == nil {
		return nil, &UnknownFormatError{Format: opts.Format}
	}
	loc, err := parseName(name)
	if err != nil {
		return nil, err
	}
	p.path = loc.path
	if err := p.planData(); err != nil {
		return nil, err
	}
	if opts.BackingFile != "" || opts.BackingFormat != "" {
		if !hasOption(p.drv, "backing_file") {
			return nil, &NoBackingSupportError{Format: opts.Format}
		}
	}
	if opts.BackingFile != "" {
		if err := p.inspectBacking(ctx); err != nil {
			return nil, err
		}
		if err := p.refuseOwnBacking(); err != nil {
			return nil, err
		}
	} else if opts.SizeFromBacking {
		return nil, ErrNoSize
	}
	if p.Size < 0 {
		return nil, fmt.Errorf("%s: size %d: %w", name, p.Size, block.ErrOutOfRange)
	}
	return p, nil
}

// hasOption says whether a format has a creation option, by which it also
// says what it can do.
func hasOption(drv format.Driver, name string) bool {
	for _, o := range drv.Options() {
		if o.Name == name {
			return true
		}
	}
	return false
}

func (p *CreatePlan) inspectBacking(ctx context.Context) error {
	o := &p.opts
	if !o.Unchecked {
		full := combine(p.path, o.BackingFile)
		// As stock: no locks, for the backing file of a running machine is
		// a backing file all the same; only its size is taken.
		im, err := Open(ctx, full, Options{Format: o.BackingFormat, NoLock: true, Secrets: o.Secrets, use: useInfo})
		if err != nil {
			var open *OpenError
			if errors.As(err, &open) {
				err = open.Err
			}
			return &BackingError{Overlay: p.Name, Name: o.BackingFile, Err: err}
		}
		if o.SizeFromBacking {
			p.Size = im.Node().Size()
		}
		for _, l := range im.Layers() {
			p.below = append(p.below, l.Name)
			if l.dataPath != "" {
				p.below = append(p.below, l.dataPath)
			}
		}
		detected := im.Format()
		if err := im.Close(); err != nil {
			return &BackingError{Overlay: p.Name, Name: o.BackingFile, Err: err}
		}
		if o.BackingFormat == "" {
			return &NoBackingFormatError{Detected: detected}
		}
	}
	if o.BackingFormat == "" {
		return &NoBackingFormatError{}
	}
	if o.Unchecked && o.SizeFromBacking {
		return ErrNoSize
	}
	return nil
}

// refuseOwnBacking refuses to make the image in a file that it needs: the
// backing file, or one below it, under whatever name.
func (p *CreatePlan) refuseOwnBacking() error {
	if loc, err := parseName(combine(p.path, p.opts.BackingFile)); err == nil && len(p.below) == 0 {
		p.below = []string{loc.path}
	}
	st, err := os.Stat(p.path)
	if err != nil {
		return nil // there is no such file yet
	}
	for _, name := range p.below {
		if other, err := os.Stat(name); err == nil && os.SameFile(st, other) {
			return fmt.Errorf("%s is in its own backing chain: making an image there would destroy what it is to be based on: %w", p.Name, block.ErrBackingLoop)
		}
	}
	return nil
}

// checkOptions asks the driver whether it would refuse size or options, before
// an existing file is made empty for it.
func (p *CreatePlan) checkOptions(opts format.CreateOptions) error {
	c, ok := p.drv.(format.CreateChecker)
	if !ok {
		return nil
	}
	opts.Values = maps.Clone(opts.Values)
	if p.drv.Name() != rawName {
		delete(opts.Values, "nocow")
		delete(opts.Values, "extent_size_hint")
	}
	return c.CheckCreate(p.Size, opts)
}

// Create makes a new image file, or makes an existing file into one. An
// image that cannot be completed is removed.
func Create(ctx context.Context, name string, opts CreateOptions) error {
	p, err := PlanCreate(ctx, name, opts)
	if err != nil {
		return err
	}
	return p.Create(ctx)
}

// Create carries the plan out.
func (p *CreatePlan) Create(ctx context.Context) error {
	_, err := p.create(ctx)
	return err
}

// create carries the plan out and returns what it takes to undo it, which an
// error already did.
func (p *CreatePlan) create(ctx context.Context) (made madeFile, err error) {
	values := p.opts.Values
	if values == nil {
		values = map[string]string{}
	} else {
		values = maps.Clone(values)
	}
	opts := format.CreateOptions{
		Values:        values,
		Filename:      p.Name,
		BackingFile:   p.opts.BackingFile,
		BackingFormat: p.opts.BackingFormat,
		Secrets:       p.opts.Secrets,
	}
	if err := p.checkOptions(opts); err != nil {
		return made, err
	}
	if err := p.refuseSharedData(); err != nil {
		return made, err
	}
	f, made, err := createFile(p.path, p.drv.Name() != rawName || p.opts.Fill, p.opts.Fill)
	if err != nil {
		return madeFile{}, err
	}
	node := underlay.Node(ctx, p.path, f)
	defer func() { err = made.close(node, err) }()
	if err := p.checkDevice(f); err != nil {
		return made, err // before a byte of the device is touched
	}
	if err := p.empty(ctx, node, f); err != nil {
		return made, err
	}
	data, err := p.createData(ctx, &made, &opts)
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	if p.drv.Name() != rawName {
		if err := setAttributes(f, values); err != nil {
			return made, err
		}
	}
	return made, p.fill(ctx, node, opts)
}

// checkDevice refuses what a raw image on a device cannot have.
func (p *CreatePlan) checkDevice(f *file.File) error {
	if !f.IsDevice() || p.drv.Name() != rawName {
		return nil
	}
	mode := block.Preallocation(p.opts.Values["preallocation"])
	if mode != "" && mode != block.PreallocOff {
		return &format.OptionError{Text: fmt.Sprintf("Unsupported preallocation mode '%s'", mode)}
	}
	if p.Size > f.Size() {
		return &file.DeviceSizeError{File: p.path}
	}
	return nil
}

// fill writes the new image into file, which is empty or a device. An image
// with metadata is marked as unfinished until all of it is safe.
func (p *CreatePlan) fill(ctx context.Context, file block.Node, opts format.CreateOptions) error {
	var u *unfinishedFile
	raw := p.drv.Name() == rawName
	if p.opts.Fill && !(raw && p.Size == 0) || !p.opts.NoFlush && !raw {
		var err error
		if u, err = newUnfinished(file, p.drv, !p.opts.unsafe); err != nil {
			return err
		} else if u != nil {
			file = u
		}
	}
	if err := p.drv.Create(ctx, file, p.Size, opts); err != nil || p.opts.NoFlush {
		return err
	}
	for _, n := range []block.Node{opts.Data, file} { // what refers to the data comes second
		if w, ok := n.(block.Writer); ok {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	if u == nil || p.opts.Fill {
		return nil
	}
	return u.finish()
}

// setAttributes applies the options that concern the file, whatever format is
// in it, and takes them out of values. They are hints: a file system that does
// not have them is no error, as for the stock tool.
func setAttributes(f *file.File, values map[string]string) error {
	if values["nocow"] == "on" {
		_ = f.SetNoCow()
	}
	if hint, ok := values["extent_size_hint"]; ok {
		n, err := strconv.ParseInt(hint, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("%s: extent size hint %q is not a number of bytes: %w", f.Name(), hint, block.ErrOutOfRange)
		}
		_ = f.SetExtentHint(n)
	}
	delete(values, "nocow")
	delete(values, "extent_size_hint")
	return nil
}

// madeFile remembers what was there before, so that it can be undone.
type madeFile struct {
	path  string // "" where nothing was made
	isNew bool
	file  fs.FileInfo // to know it by: another one may have its name by now
	data  *madeFile   // the image's external data file, nil if it has none
}

// look notes whether there is a file at path.
func look(path string) madeFile {
	_, err := os.Lstat(path)
	return madeFile{path: path, isNew: errors.Is(err, fs.ErrNotExist)}
}

// createFile makes the file for a new image. One that is there keeps its
// content until [empty]. fill says that the image is opened again to be filled:
// what would refuse that has to do so now.
func createFile(path string, growable, fill bool) (*file.File, madeFile, error) {
	locks := file.CreateLocks()
	if fill {
		locks.NotShared |= file.PermWrite
	}
	made := look(path)
	f, err := file.Create(path, file.Options{Locks: &locks, Growable: growable, Keep: true})
	if err != nil {
		return nil, made, err
	}
	if made.file, err = f.Stat(); err != nil {
		return nil, made, errors.Join(err, f.Close())
	}
	return f, made, nil
}

// empty drops the content of file f, whose bytes are node's. A block device
// keeps it but for its first sector, so that the header of what was there is
// not taken for the new image's. The old header must not be found before the
// new tables.
func (p *CreatePlan) empty(ctx context.Context, node block.Node, f *file.File) error {
	if f.Size() == 0 {
		return nil
	}
	if f.IsDevice() {
		w, ok := block.As[block.Writer](node)
		if !ok {
			return fmt.Errorf("make %s empty: %w", f.Name(), block.ErrUnsupported)
		}
		_, err := w.WriteAt(make([]byte, min(block.SectorSize, f.Size())), 0)
		return err
	}
	r, ok := block.As[block.Resizer](node)
	if !ok {
		return fmt.Errorf("make %s empty: %w", f.Name(), block.ErrUnsupported)
	}
	if err := r.Resize(ctx, 0, block.ResizeOptions{AllowShrink: true}); err != nil {
		return err
	}
	if w, ok := block.As[block.Writer](node); ok && p.safe() {
		return w.Flush()
	}
	return nil
}

// safe says whether the new image must outlive a power loss at any instant.
func (p *CreatePlan) safe() bool {
	return !p.opts.unsafe && (p.opts.Fill || !p.opts.NoFlush)
}

// close closes the file, which is undone if err, or closing it, says that it is
// not what it should be. A new file is removed before the locks go, and with
// them the right to it: another program may be making an image there a moment
// later. One that was there is emptied behind the close, which may still write
// tables into it.
func (m madeFile) close(n block.Node, err error) error {
	if err != nil {
		m.remove()
	}
	closeErr := n.Close()
	if err != nil || closeErr != nil {
		m.undo()
	}
	return errors.Join(err, closeErr)
}

// undo removes a file that was not there before, and empties one that was:
// its old content is gone already, and half an image would look like one.
// Errors do not matter beside the one that led here.
func (m madeFile) undo() {
	m.remove()
	if m.data != nil {
		m.data.undo()
	}
	if st, err := os.Stat(m.path); m.isNew || err != nil || !st.Mode().IsRegular() {
		return
	}
	// With the locks, as whoever has it by now has made it anew.
	locks := file.WriteLocks()
	f, err := file.Open(m.path, file.Options{Writable: true, Locks: &locks})
	if err != nil {
		return
	}
	if st, err := f.Stat(); err == nil && os.SameFile(st, m.file) {
		_ = f.Resize(context.Background(), 0, block.ResizeOptions{AllowShrink: true})
	}
	_ = f.Close()
}

// remove removes what was not there before, unless it is another file by now.
func (m madeFile) remove() {
	if m.data != nil {
		m.data.remove()
	}
	if !m.isNew {
		return
	}
	if st, err := os.Stat(m.path); err == nil && os.SameFile(st, m.file) {
		_ = os.Remove(m.path)
	}
}

// OverlayOptions are the choices of [Overlay].
type OverlayOptions struct {
	// Base is the backing file to record: absolute, or relative to the
	// folder of the overlay. BaseFormat is its format, never probed.
	Base, BaseFormat string
	// Size is the base's virtual size in bytes, or a larger one. With 0
	// the base is opened to find it out.
	Size int64
	// Flush makes the overlay safe from power loss before Overlay returns.
	// It costs more than all the rest; who makes many does one syncfs.
	Flush bool
}

// Overlay makes a new, empty qcow2 overlay. It fails with an error that
// matches fs.ErrExist where there is a file of that name; two calls for one
// name at the same time are the caller's to keep apart. It is the quick way
// for a store: with Size given, the base is not touched.
func Overlay(ctx context.Context, path string, opts OverlayOptions) error {
	if opts.BaseFormat == "" {
		return &NoBackingFormatError{}
	}
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create overlay", Path: path, Err: fs.ErrExist}
	}
	return Create(ctx, path, CreateOptions{
		Format:          "qcow2",
		Size:            opts.Size,
		SizeFromBacking: opts.Size == 0,
		BackingFile:     opts.Base,
		BackingFormat:   opts.BaseFormat,
		Unchecked:       opts.Size != 0,
		NoFlush:         !opts.Flush,
	})
}
