package qcow2

import (
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// createPlan is what Create has been asked for, checked.
type createPlan struct {
	g              geometry
	version        uint32
	size           int64
	lazyRefcounts  bool
	compression    uint8
	prealloc       block.Preallocation
	backing        string
	backingFormat  string
	dataFile       string // name of the external data file, "" for none
	dataRaw        bool
	crypt          cryptPlan
	fileIsNotEmpty bool // bytes that are not written may hold anything
}

// planCreate checks the options. Texts are those of stock QEMU.
func planCreate(size int64, opts format.CreateOptions) (*createPlan, error) {
	p := &createPlan{
		g:       geometry{clusterBits: 16, refcountOrder: 4},
		version: 3, size: size, prealloc: block.PreallocOff,
		backing: opts.BackingFile, backingFormat: opts.BackingFormat,
	}
	refcountBits := uint64(16)
	keys := make([]string, 0, len(opts.Values))
	for k := range opts.Values {
		keys = append(keys, k)
	}
	slices.Sort(keys) // so that of two errors always the same is reported
	clusterSize := uint64(1) << 16
	for _, k := range keys {
		v := opts.Values[k]
		var err error
		switch k {
		case "backing_file":
			p.backing = v
		case "backing_fmt":
			p.backingFormat = v
		case "cluster_size":
			clusterSize, err = parseSize(k, v)
		case "compat":
			p.version, err = parseCompat(v)
		case "compression_type":
			p.compression, err = parseCompression(v)
		case "data_file":
			p.dataFile = v
			p.g.external = true
		case "data_file_raw":
			p.dataRaw, err = parseBool(k, v)
		case "extended_l2":
			p.g.extendedL2, err = parseBool(k, v)
		case "lazy_refcounts":
			p.lazyRefcounts, err = parseBool(k, v)
		case "preallocation":
			p.prealloc, err = parsePrealloc(v)
		case "refcount_bits":
			refcountBits, err = parseNumber(k, v)
		case "size":
			var n uint64
			if n, err = parseSize(k, v); err == nil {
				if n > math.MaxInt64 {
					return nil, p.tooLarge()
				}
				p.size = int64(n)
			}
		default:
			if k != "encryption" && !strings.HasPrefix(k, cryptPrefix) {
				return nil, unsupportedf("Invalid parameter '%s'", k)
			}
			err = p.crypt.set(k, v)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := p.check(clusterSize, refcountBits); err != nil {
		return nil, err
	}
	return p, p.crypt.check(opts.Secrets)
}

// check checks the options against each other and fills in the geometry.
func (p *createPlan) check(clusterSize, refcountBits uint64) error {
	if p.g.extendedL2 && p.version < 3 {
		return unsupportedf("Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)")
	}
	if bits.OnesCount64(clusterSize) != 1 || clusterSize < 1<<minClusterBits || clusterSize > 1<<maxClusterBits {
		return unsupportedf("Cluster size must be a power of two between 512 and 2048k")
	}
	if p.g.extendedL2 && clusterSize < minSubclusterSize*subclustersPerCluster {
		return unsupportedf("Extended L2 entries are only supported with cluster sizes of at least %d bytes", minSubclusterSize*subclustersPerCluster)
	}
	if bits.OnesCount64(refcountBits) != 1 || refcountBits > 64 {
		return unsupportedf("Refcount width must be a power of two and may not exceed 64 bits")
	}
	p.g.clusterBits, p.g.refcountOrder = uint(bits.TrailingZeros64(clusterSize)), uint(bits.TrailingZeros64(refcountBits))
	switch {
	case p.backing != "" && p.prealloc != block.PreallocOff && !p.g.extendedL2:
		return unsupportedf("Backing file and preallocation can only be used at the same time if extended_l2 is on")
	case p.version < 3 && p.lazyRefcounts:
		return unsupportedf("Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)")
	case p.version < 3 && refcountBits != 16:
		return unsupportedf("Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)")
	case p.dataRaw && !p.g.external:
		return unsupportedf("data-file-raw requires data-file")
	case p.dataRaw && p.backing != "":
		return unsupportedf("Backing file and data-file-raw cannot be used at the same time")
	case p.version < 3 && p.g.external:
		return unsupportedf("External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)")
	case p.version < 3 && p.compression != compressionZlib:
		return unsupportedf("Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)")
	case p.backing == "" && p.backingFormat != "":
		return unsupportedf("Backing format cannot be used without backing file")
	case len(p.backing) > maxBackingName:
		return unsupportedf("Backing file name too long")
	case p.size < 0 || p.size > p.g.maxSize():
		return p.tooLarge()
	}
	if p.dataRaw && p.prealloc == block.PreallocOff {
		// Who looks at the metadata has to see what who does not does.
		p.prealloc = block.PreallocMetadata
	}
	p.size = (p.size + block.SectorSize - 1) &^ (block.SectorSize - 1)
	return nil
}

func (p *createPlan) tooLarge() error {
	return unsupportedf("The image size is too large for file format 'qcow2' (try using a larger cluster size)")
}

func parseCompat(v string) (uint32, error) {
	switch v {
	case "0.10", "v2":
		return 2, nil
	case "1.1", "v3":
		return 3, nil
	}
	return 0, unsupportedf("Parameter 'version' does not accept value '%s'", v)
}

func parseCompression(v string) (uint8, error) {
	switch v {
	case "zlib":
		return compressionZlib, nil
	case "zstd":
		return compressionZstd, nil
	}
	return 0, unsupportedf("Parameter 'compression-type' does not accept value '%s'", v)
}

func parsePrealloc(v string) (block.Preallocation, error) {
	switch p := block.Preallocation(v); p {
	case block.PreallocOff, block.PreallocMetadata, block.PreallocFalloc, block.PreallocFull:
		return p, nil
	}
	return "", unsupportedf("Parameter 'preallocation' does not accept value '%s'", v)
}

func parseBool(k, v string) (bool, error) {
	switch v {
	case "on", "yes", "true", "y":
		return true, nil
	case "off", "no", "false", "n":
		return false, nil
	}
	return false, unsupportedf("Parameter '%s' expects 'on' or 'off'", k)
}

func parseNumber(k, v string) (uint64, error) {
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil {
		return 0, unsupportedf("Parameter '%s' expects a number", k)
	}
	return n, nil
}

// parseSize reads a number of bytes with an optional suffix of powers of 1024
// and, with one, a fraction.
func parseSize(k, v string) (uint64, error) {
	bad := unsupportedf("Parameter '%s' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.", k)
	num, unit := v, uint64(1)
	if n := len(v); n > 0 {
		if i := strings.IndexByte("BKMGTPE", v[n-1]&^0x20); i >= 0 {
			num, unit = v[:n-1], 1<<(10*i)
		}
	}
	if n, err := strconv.ParseUint(num, 10, 64); err == nil {
		hi, lo := bits.Mul64(n, unit)
		if hi != 0 {
			return 0, bad
		}
		return lo, nil
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || unit == 1 || f < 0 || !(f*float64(unit) < math.MaxInt64) || strings.ContainsAny(num, "eExXnNpP+-_") {
		return 0, bad
	}
	return uint64(f * float64(unit)), nil
}
