package image

import (
	"context"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/internal/underlay"
	"github.com/lamina-vm/lamina/protocol/file"
)

// nodePlan is how the nodes of a layer are opened: the file at the bottom, and
// what lies between it and the layer's format.
type nodePlan struct {
	top     nodeOptions
	file    fileOptions
	between []*BlockOptions // formats over the file, the lowest first
	direct  bool
	noFlush bool
	noLock  bool
}

// errNodeReadOnly is for writing to a node with read-only=on. It matches
// [block.ErrReadOnly].
type readOnlyNodeError struct{}

func (readOnlyNodeError) Error() string        { return "Block node is read-only" }
func (readOnlyNodeError) Is(target error) bool { return target == block.ErrReadOnly }

// plan checks the options of all nodes, the lowest first, as stock does.
func (o *BlockOptions) plan(c *chain, writable bool) (nodePlan, error) {
	p := nodePlan{
		direct:  c.opts.Cache == CacheNone || c.opts.Cache == CacheDirectsync,
		noFlush: c.opts.Cache == CacheUnsafe, noLock: c.opts.NoLock,
	}
	if o == nil {
		return p, nil
	}
	var nodes []*BlockOptions // from the top
	for n := o; n != nil; n = n.File {
		nodes = append(nodes, n)
	}
	// What a node says of the cache holds for those below, unless they say it.
	for _, n := range nodes {
		opts, err := n.node()
		if err != nil {
			if n == nodes[0] && len(nodes) > 1 {
				// An error of a node below comes first.
				if _, below := o.File.plan(c, writable); below != nil {
					return p, below
				}
			}
			return p, err
		}
		if opts.direct != nil {
			p.direct = *opts.direct
		}
		if opts.noFlush != nil {
			p.noFlush = *opts.noFlush
		}
		switch {
		case opts.forceShare && writable:
			return p, &format.OptionError{Text: "force-share=on can only be used with read-only images"}
		case opts.readOnly && writable:
			return p, readOnlyNodeError{}
		}
		p.noLock = p.noLock || opts.forceShare
		if n == o {
			p.top = opts
			if c.opts.use != useInfo {
				delete(p.top.rest, childBacking) // the opener refuses it
			}
		}
	}
	bottom := nodes[len(nodes)-1]
	var err error
	if p.file, err = bottom.file(p.direct); err != nil {
		return p, err
	}
	for i := len(nodes) - 2; i > 0; i-- {
		p.between = append(p.between, nodes[i])
	}
	return p, nil
}

// under returns the bytes of the layer's format: the file with the formats and
// filters between.
func (c *chain) under(ctx context.Context, l *Layer, p nodePlan, writable bool) (block.Node, error) {
	node := underlay.Node(ctx, p.file.path, block.Node(l.file))
	return c.over(ctx, l, node, p, writable)
}

// over opens the formats between the file and the layer's format over node.
func (c *chain) over(ctx context.Context, l *Layer, node block.Node, p nodePlan, writable bool) (block.Node, error) {
	if writable {
		node = filtered(node, p.file.nodeOptions)
	}
	for _, o := range p.between {
		drv := all.Find(o.Driver)
		if drv == nil {
			return nil, &format.OptionError{Text: "A format between a file and another format has to be named (driver)"}
		}
		opts, err := o.node()
		if err != nil {
			return nil, err
		}
		node, err = drv.Open(ctx, node, format.OpenOptions{
			Writable: writable, Filename: l.Name, Untrusted: c.opts.Untrusted, Unsafe: p.noFlush, Secrets: c.opts.Secrets,
			Values: opts.rest, NoData: c.opts.use == useInfo, ForceBacking: o.Backing != nil,
			Opener: &opener{c: c, l: l, path: p.file.path, opts: o},
		})
		if err != nil {
			return nil, notFormat(err, l.Name, drv)
		}
		if writable {
			node = filtered(node, opts)
		}
	}
	return node, nil
}

// checkUnused refuses options about nodes that the layer does not have.
func (c *chain) checkUnused(o *BlockOptions, l *Layer, drv format.Driver) error {
	if o == nil {
		return nil
	}
	switch {
	case o.Backing == nil:
	case c.opts.use == useInfo:
		return format.UnknownOption(drv.Name(), o.Backing.firstKey("backing."))
	case !hasOption(drv, "backing_file"):
		return &format.OptionError{Text: "Driver doesn't support backing files"}
	}
	if o.Data == nil {
		return nil
	}
	switch {
	case !hasOption(drv, "data_file"):
		return format.UnknownOption(drv.Name(), o.Data.firstKey("data-file."))
	case c.opts.use != useInfo && l.data == nil:
		return &format.OptionError{Text: "'data-file' can only be set for images with an external data file"}
	}
	return nil
}

// firstKey returns the first option of the node in QEMU's order, behind prefix.
func (o *BlockOptions) firstKey(prefix string) string {
	keys := o.keys(prefix)
	if len(keys) == 0 {
		return prefix + "driver"
	}
	return queueOrder(keys)[0]
}

// keys returns the names of all options, flat.
func (o *BlockOptions) keys(prefix string) []string {
	var list []string
	for k := range o.Values {
		list = append(list, prefix+k)
	}
	if o.Driver != "" {
		list = append(list, prefix+"driver")
	}
	for _, child := range []string{childFile, childData, childBacking} {
		if n := *o.child(child); n != nil {
			list = append(list, n.keys(prefix+child+".")...)
		}
	}
	return list
}

// backingLocation says which backing file the options name instead of the one
// that the image names; what they leave out is the image's.
func (o *opener) backingLocation(name, formatName string) (location, string, error) {
	over := o.opts.Backing
	if over.Driver != "" {
		formatName = over.Driver
	}
	if over.File != nil || isProtocol(over.Driver) {
		loc, err := over.withDriver(formatName).location()
		return loc, loc.format, err
	}
	if name == "" {
		return location{}, "", errNoFile
	}
	loc, err := parseName(combine(o.path, name))
	if err != nil {
		return loc, "", err
	}
	if formatName != "" && all.Find(formatName) == nil {
		return location{}, "", &UnknownFormatError{Format: formatName}
	}
	merged := *over
	merged.Driver = formatName
	merged.File = &BlockOptions{Driver: "file", anyFile: true, Values: map[string]any{"filename": loc.path}}
	if loc.opts != nil && loc.opts.File != nil {
		merged.File = loc.opts.File
	}
	loc.opts = &merged
	return loc, formatName, nil
}

// withDriver returns the options with another driver.
func (o *BlockOptions) withDriver(driver string) *BlockOptions {
	c := *o
	c.Driver = driver
	return &c
}

// closeUnless closes f where there is an error, and returns that.
func closeUnless(f *file.File, err error) error {
	if err != nil {
		_ = f.Close() // nothing was written
	}
	return err
}

// openDataNode opens the data file that opts, or else name, says.
func (o *opener) openDataNode(ctx context.Context, name string, writable bool) (*file.File, block.Node, error) {
	opts := &BlockOptions{Driver: "file", anyFile: true, Values: map[string]any{"filename": name}}
	if o.opts != nil && o.opts.Data != nil {
		opts = o.opts.Data
		if _, named := opts.Values["filename"]; !named && opts.File == nil {
			c := *opts
			c.Values = map[string]any{"filename": name}
			for k, v := range opts.Values {
				c.Values[k] = v
			}
			opts = &c
		}
	} else if loc, err := parseName(name); err != nil {
		return nil, nil, err
	} else if loc.opts != nil {
		opts = loc.opts
	} else {
		opts.Values["filename"] = loc.path
	}
	// All of it is between the file and the image's format.
	p, err := (&BlockOptions{File: opts, Values: map[string]any{}}).plan(o.c, writable)
	if err != nil {
		return nil, nil, err
	}
	o.l.dataPath = p.file.path
	if o.c.opts.use == useInfo {
		return nil, nil, nil
	}
	locks := o.c.dataLocks(writable)
	if p.file.unlocked {
		locks = file.Locks{}
	}
	// Stock finds a conflict about the size first.
	first := file.Locks{NotShared: locks.NotShared & file.PermResize}
	f, err := file.Open(p.file.path, file.Options{
		Writable: writable, Growable: writable, Locks: &first, NoLock: p.noLock, Direct: p.direct,
		Sync: o.c.opts.Cache == CacheWritethrough || o.c.opts.Cache == CacheDirectsync,
	})
	if err == nil {
		err = closeUnless(f, p.file.check(f))
	}
	if err != nil {
		return nil, nil, err
	}
	if !p.noLock {
		if err := f.ChangeLocks(locks); err != nil {
			_ = f.Close()
			return nil, nil, err
		}
	}
	for _, l := range o.c.layers {
		if l.holds(f) {
			_ = f.Close()
			return nil, nil, &SharedDataError{Image: o.path, Data: p.file.path, Other: l.Name}
		}
	}
	node, err := o.c.over(ctx, o.l, underlay.Node(ctx, p.file.path, f), p, writable)
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, node, nil
}
