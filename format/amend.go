package format

import "context"

// Amender is a writable node whose image's options can be changed where they
// are (`qemu-img amend`). The options that it takes are those of the driver's
// [Driver].Options with Amendable set. An option with its present value is no
// change. On error the image is as it was, or consistent with a part of the
// changes made; it is never between two states.
type Amender interface {
	Amend(ctx context.Context, opts AmendOptions) error
}

// AmendOptions are the choices of [Amender].Amend.
type AmendOptions struct {
	// Values holds `-o key=value` options by key, spelled as for create. An
	// absent key means no change. Unknown and unamendable ones fail with an
	// error that matches block.ErrUnsupported, before anything is changed.
	Values map[string]string
	// Secrets resolves the names of keys. nil is none.
	Secrets Secrets
	// Force allows what could make the data inaccessible (erasing the last
	// key of an encrypted image).
	Force bool
	// Progress receives how much is done, of the total, in units of the
	// amendment's own choice, ascending. May be nil.
	Progress func(done, total int64)
}

// AmendLister is a driver with options for amend that are no creation options
// too. AmendOptions returns all that [Amender] takes, sorted by name.
type AmendLister interface {
	AmendOptions() []Option
}
