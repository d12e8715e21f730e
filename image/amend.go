package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// AmendOptions are the choices of [Amend]. The zero value changes nothing.
type AmendOptions struct {
	Format string // as in Options
	Cache  CacheMode
	// Values holds `-o key=value` options by key, as for [Create]. Those that
	// the format can change later have format.Option.Amendable set.
	Values map[string]string
	// Force allows what could make the data inaccessible.
	Force bool
	// Secrets resolves the names of keys. nil is none.
	Secrets format.Secrets
	// Progress is as in format.AmendOptions. May be nil.
	Progress  func(done, total int64)
	Untrusted bool // refuses images that name other files, as in Options
}

// ErrNoAmend: the image's format has no options that could be changed.
var ErrNoAmend error = unsupported("the format has no options that can be changed later")

// AmendPlan is an image opened to have its options changed.
type AmendPlan struct {
	im *Image
}

// PlanAmend opens the image that is to be changed. Of opts it heeds Format,
// Cache and Secrets. The plan is to be closed.
func PlanAmend(ctx context.Context, name string, opts AmendOptions) (*AmendPlan, error) {
	im, err := Open(ctx, name, Options{Format: opts.Format, Cache: opts.Cache, Untrusted: opts.Untrusted, Secrets: opts.Secrets, Writable: true})
	if err != nil {
		return nil, err
	}
	return &AmendPlan{im}, nil
}

// Format returns the image's format.
func (p *AmendPlan) Format() string { return p.im.Format() }

// ProbedRaw says that the format was guessed to be raw.
func (p *AmendPlan) ProbedRaw() bool { return p.im.Layers()[0].ProbedRaw() }

// Amend carries the change out; it is durable on return. Of opts it heeds
// Values, Force, Secrets, Progress, and that Cache is CacheUnsafe.
func (p *AmendPlan) Amend(ctx context.Context, opts AmendOptions) error {
	a, ok := block.As[format.Amender](p.im.Node())
	if !ok {
		return fmt.Errorf("%s: format %s: %w", p.im.Layers()[0].Name, p.Format(), ErrNoAmend)
	}
	err := a.Amend(ctx, format.AmendOptions{Values: opts.Values, Secrets: opts.Secrets, Force: opts.Force, Progress: opts.Progress})
	if err != nil || opts.Cache == CacheUnsafe {
		return err
	}
	if w, ok := block.As[block.Writer](p.im.Node()); ok {
		return w.Flush()
	}
	return nil
}

// Close closes the image.
func (p *AmendPlan) Close() error { return p.im.Close() }

// Amend changes options of an image where it is. On error the image is as it
// was, or consistent with a part of the changes made; after power loss too.
func Amend(ctx context.Context, name string, opts AmendOptions) (err error) {
	p, err := PlanAmend(ctx, name, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return p.Amend(ctx, opts)
}
