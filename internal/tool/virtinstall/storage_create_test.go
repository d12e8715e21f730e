package virtinstall

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// A call that makes something goes on after an interrupt, for as long as a
// step back may take, so that what it makes can be taken back.
func TestLingering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		long, cancel := lingering(ctx)
		interrupt()
		time.Sleep(undoTimeout - time.Second)
		synctest.Wait()
		if err := long.Err(); err != nil {
			t.Errorf("it ends with the interrupt: %v", err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if long.Err() == nil {
			t.Error("it never ends after an interrupt")
		}
		cancel()
		long, cancel = lingering(t.Context())
		cancel()
		if long.Err() == nil {
			t.Error("its own cancel does not end it")
		}
	})
}

// The step back from a definition keeps a file of variables that the document
// names, and removes the one that libvirt made.
func TestUndefineOptions(t *testing.T) {
	for doc, own := range map[string]bool{
		`<domain/>`: false, `<domain><os><nvram template="/t"/></os></domain>`: false,
		`<domain><os><nvram>/mine.fd</nvram></os></domain>`:                              true,
		`<domain><os><nvram type="file"><source file="/mine.fd"/></nvram></os></domain>`: true,
	} {
		el, err := domxml.Parse([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if o := undefineOptions(el); o.KeepNVRAM != own || o.NVRAM == own {
			t.Errorf("%s: %+v", doc, o)
		}
	}
}
