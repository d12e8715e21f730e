package qcow2

import (
	"maps"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// A discardKind is why a host cluster is given up; for each the options say
// whether its space goes back to the file system.
type discardKind uint8

const (
	discardOther    discardKind = iota // moved, or no longer needed by the image itself
	discardRequest                     // the guest discarded or zeroed it
	discardSnapshot                    // its snapshot was deleted
	discardKinds
)

// runtimeOptions are the options of an open image ([format.OpenOptions].Values).
type runtimeOptions struct {
	// lazy says whether refcounts are written late; nil leaves it to the
	// image (lazy-refcounts).
	lazy *bool
	// keepHost makes discarded clusters keep their place in the file, so that
	// it does not become fragmented (discard-no-unref).
	keepHost bool
	// keepSpace is for whom no space is given back (pass-discard-request,
	// -snapshot and -other off).
	keepSpace [discardKinds]bool
}

// overlapParts are the switches of overlap-check, each a structure that is
// looked for before a write.
var overlapParts = [...]string{
	"template", "main-header", "active-l1", "active-l2", "refcount-table",
	"refcount-block", "snapshot-table", "inactive-l1", "inactive-l2", "bitmap-directory",
}

// cacheOptions are the sizes of caches, by their keys.
type cacheOptions struct {
	all, l2, refs, entry *uint64
}

// parseRuntime checks the options of an image. Texts are those of stock QEMU.
// What is only about stock's own caches and overlap checks is checked too, and
// changes nothing: ours have bounds of their own, and every write is checked.
func (img *Image) parseRuntime(values map[string]string) error {
	var caches cacheOptions
	for _, k := range slices.Sorted(maps.Keys(values)) { // of two errors always the same is reported
		if err := img.parseRuntimeOption(k, values[k], &caches); err != nil {
			return err
		}
	}
	rt := &img.rt
	check, template := values["overlap-check"], values["overlap-check.template"]
	switch {
	case check != "" && template != "" && check != template:
		return unsupportedf("Conflicting values for qcow2 options 'overlap-check' ('%s') and 'overlap-check.template' ('%s')", check, template)
	case values["encrypt.format"] != "" && img.hdr.cryptMethod == 0:
		return unsupportedf("No encryption in image header, but options specified format '%s'", values["encrypt.format"])
	case rt.lazy != nil && *rt.lazy && img.version < 3:
		return unsupportedf("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
	case rt.keepHost && img.version < 3:
		return unsupportedf("discard-no-unref is only supported since qcow2 version 3")
	}
	return caches.check(img.g)
}

func (img *Image) parseRuntimeOption(k, v string, caches *cacheOptions) (err error) {
	rt := &img.rt
	size := func(p **uint64) {
		var n uint64
		n, err = format.OptionSize(k, v)
		*p = &n
	}
	pass := func(kind discardKind) {
		var on bool
		on, err = parseBool(k, v)
		rt.keepSpace[kind] = !on
	}
	switch k {
	case "lazy-refcounts":
		var on bool
		on, err = parseBool(k, v)
		rt.lazy = &on
	case "discard-no-unref":
		rt.keepHost, err = parseBool(k, v)
	case "pass-discard-request":
		pass(discardRequest)
	case "pass-discard-snapshot":
		pass(discardSnapshot)
	case "pass-discard-other":
		pass(discardOther)
	case "overlap-check", "overlap-check.template":
		if v != "none" && v != "constant" && v != "cached" && v != "all" {
			err = unsupportedf("Unsupported value '%s' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, cached, all", v)
		}
	case "cache-size":
		size(&caches.all)
	case "l2-cache-size":
		size(&caches.l2)
	case "refcount-cache-size":
		size(&caches.refs)
	case "l2-cache-entry-size":
		size(&caches.entry)
	case "cache-clean-interval":
		var n uint64
		if n, err = format.OptionNumber(k, v); err == nil && n > math.MaxUint32 {
			err = unsupportedf("Cache clean interval too big")
		}
	default:
		if strings.HasPrefix(k, "encrypt.") {
			return nil // the encryption's
		}
		part, ok := strings.CutPrefix(k, "overlap-check.")
		if !ok || !slices.Contains(overlapParts[:], part) {
			return format.UnknownOption("qcow2", k)
		}
		_, err = parseBool(k, v)
	}
	return err
}

// check refuses sizes that contradict each other.
func (c *cacheOptions) check(g geometry) error {
	switch {
	case c.all != nil && c.l2 != nil && c.refs != nil:
		return unsupportedf("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
	case c.all != nil && c.l2 != nil && *c.l2 > *c.all:
		return unsupportedf("l2-cache-size may not exceed cache-size")
	case c.all != nil && c.refs != nil && *c.refs > *c.all:
		return unsupportedf("refcount-cache-size may not exceed cache-size")
	case c.entry != nil && (bits.OnesCount64(*c.entry) != 1 || *c.entry < 1<<minClusterBits || *c.entry > uint64(g.clusterSize())):
		return unsupportedf("L2 cache entry size must be a power of two between %d and the cluster size (%d)", 1<<minClusterBits, g.clusterSize())
	}
	return nil
}

// lazyRefcounts reports whether refcounts are to be written late.
func (img *Image) lazyRefcounts(h header) bool {
	if img.rt.lazy != nil {
		return *img.rt.lazy
	}
	return h.compat&compatLazyRefcounts != 0 && h.version >= 3
}

// punch gives the space of host clusters back that stay where they are and
// whose bytes nobody reads any more (discard-no-unref). The caller holds the
// guest range alone, so nobody uses them again meanwhile. They become zeros in
// the file, so a crash before the L2 entries are written leaves the old
// content or zeros; where zeros in the file are not zeros for the guest,
// nothing is done.
func (img *Image) punch(r run) {
	if img.g.external || img.hdr.cryptMethod != 0 || img.rt.keepSpace[discardRequest] || !r.copied || !r.kind.hasHost() {
		return
	}
	n := min(r.length, img.file.Size()-int64(r.host))
	if z, ok := block.As[block.Zeroer](img.file); ok && n > 0 {
		// Without it the file only keeps space that it could give back.
		_ = z.WriteZeroes(int64(r.host), n, block.ZeroMayUnmap|block.ZeroNoFallback)
	}
}
