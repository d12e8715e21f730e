package diskcrypt

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
)

// Constants of the LUKS1 header (specification, figure 2 and 3).
const (
	// HeaderBytes is what the header takes, without the key material.
	HeaderBytes = 592
	// Slots is the number of key slots.
	Slots = 8

	luksVersion  = 1
	slotEnabled  = 0x00AC71F3
	slotDisabled = 0x0000DEAD
	stripes      = 4000 // of a key slot; everybody's
	alignSectors = 8    // key material begins on 4 KiB
	digestBytes  = 20
	saltBytes    = 32
	uuidBytes    = 40

	offSlots  = 208
	slotBytes = 48
)

var luksMagic = [6]byte{'L', 'U', 'K', 'S', 0xba, 0xbe}

// IsLUKS reports whether b begins with the header of a LUKS1 volume.
func IsLUKS(b []byte) bool {
	return len(b) >= 8 && [6]byte(b[:6]) == luksMagic && binary.BigEndian.Uint16(b[6:]) == luksVersion
}

// slot is a key slot as the header describes it, in the order of the file.
type slot struct {
	active     uint32 // slotEnabled or slotDisabled
	iterations uint32 // of PBKDF2
	salt       [saltBytes]byte
	offset     uint32 // of the key material, in sectors
	stripes    uint32
}

// header is the LUKS1 header in the order of the file.
type header struct {
	version    uint16
	cipherName string // "aes"
	cipherMode string // "xts-plain64"
	hashSpec   string // "sha256"
	payload    uint32 // offset of the disk, in sectors
	keyBytes   uint32
	digest     [digestBytes]byte // of the master key
	salt       [saltBytes]byte
	iterations uint32 // of the digest
	uuid       [uuidBytes]byte
	slots      [Slots]slot

	params Params // what the names say
}

// decodeHeader decodes and checks a header, as stock does.
func decodeHeader(b []byte) (*header, error) {
	be := binary.BigEndian
	if len(b) < HeaderBytes {
		return nil, corruptf("LUKS header: it is cut off at byte %d of %d", len(b), HeaderBytes)
	}
	if [6]byte(b[:6]) != luksMagic {
		return nil, corruptf("Volume is not in LUKS format")
	}
	h := &header{version: be.Uint16(b[6:])}
	if h.version != luksVersion {
		return nil, unsupportedf("LUKS version %d is not supported", h.version)
	}
	for _, f := range []struct {
		to   *string
		at   int
		name string
	}{{&h.cipherName, 8, "cipher name"}, {&h.cipherMode, 40, "cipher mode"}, {&h.hashSpec, 72, "hash spec"}} {
		s, _, ok := bytes.Cut(b[f.at:f.at+32], []byte{0})
		if !ok {
			return nil, corruptf("LUKS header %s is not NUL terminated", f.name)
		}
		*f.to = string(s)
	}
	h.payload, h.keyBytes = be.Uint32(b[104:]), be.Uint32(b[108:])
	copy(h.digest[:], b[112:])
	copy(h.salt[:], b[132:])
	h.iterations = be.Uint32(b[164:])
	copy(h.uuid[:], b[168:])
	for i := range h.slots {
		s, p := &h.slots[i], b[offSlots+i*slotBytes:]
		s.active, s.iterations = be.Uint32(p), be.Uint32(p[4:])
		copy(s.salt[:], p[8:])
		s.offset, s.stripes = be.Uint32(p[40:]), be.Uint32(p[44:])
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	return h, h.parse()
}

// encode is the inverse of decodeHeader.
func (h *header) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, HeaderBytes)
	copy(b, luksMagic[:])
	be.PutUint16(b[6:], h.version)
	copy(b[8:39], h.cipherName)
	copy(b[40:71], h.cipherMode)
	copy(b[72:103], h.hashSpec)
	be.PutUint32(b[104:], h.payload)
	be.PutUint32(b[108:], h.keyBytes)
	copy(b[112:], h.digest[:])
	copy(b[132:], h.salt[:])
	be.PutUint32(b[164:], h.iterations)
	copy(b[168:], h.uuid[:])
	for i := range h.slots {
		s, p := &h.slots[i], b[offSlots+i*slotBytes:]
		be.PutUint32(p, s.active)
		be.PutUint32(p[4:], s.iterations)
		copy(p[8:], s.salt[:])
		be.PutUint32(p[40:], s.offset)
		be.PutUint32(p[44:], s.stripes)
	}
	return b
}

// materialSectors is what a slot's key material takes.
func (h *header) materialSectors() uint64 {
	n := (uint64(h.keyBytes)*stripes + SectorSize - 1) / SectorSize
	return (n + alignSectors - 1) / alignSectors * alignSectors
}

// check refuses what contradicts itself.
func (h *header) check() error {
	if h.payload < alignSectors {
		return corruptf("LUKS payload is overlapping with the header")
	}
	if h.iterations == 0 {
		return corruptf("LUKS key iteration count is zero")
	}
	n := h.materialSectors()
	for i, s := range h.slots {
		switch {
		case s.stripes != stripes:
			return corruptf("Keyslot %d is corrupted (stripes %d != %d)", i, s.stripes, stripes)
		case s.offset < alignSectors:
			return corruptf("Keyslot %d is overlapping with the LUKS header", i)
		case s.active != slotEnabled && s.active != slotDisabled:
			return corruptf("Keyslot %d state (active/disable) is corrupted", i)
		case s.active == slotEnabled && s.iterations == 0:
			return corruptf("Keyslot %d iteration count is zero", i)
		case uint64(s.offset)+n > uint64(h.payload):
			return corruptf("Keyslot %d is overlapping with the encrypted payload", i)
		}
		for k := i + 1; k < Slots; k++ {
			o := uint64(h.slots[k].offset)
			if uint64(s.offset) < o+n && o < uint64(s.offset)+n {
				return corruptf("Keyslots %d and %d are overlapping in the header", i, k)
			}
		}
	}
	return nil
}

// parse finds the algorithms that the names mean.
func (h *header) parse() error {
	mode, iv, ok := strings.Cut(h.cipherMode, "-")
	if !ok {
		return corruptf("Unexpected cipher mode string format '%s'", h.cipherMode)
	}
	iv, ivHash, hasHash := strings.Cut(iv, ":")
	p := Params{CipherMode: mode, IVGenAlg: iv, IVGenHashAlg: ivHash, HashAlg: h.hashSpec}
	if hasHash && !slices.Contains(hashAlgs, ivHash) {
		return unsupportedf("Hash algorithm '%s' not supported", ivHash)
	}
	if !slices.Contains(cipherModes, mode) {
		return unsupportedf("Cipher mode '%s' not supported", mode)
	}
	var err error
	if p.CipherAlg, err = h.cipherAlg(mode); err != nil {
		return err
	}
	if !slices.Contains(hashAlgs, h.hashSpec) {
		return unsupportedf("Hash algorithm '%s' not supported", h.hashSpec)
	}
	if !slices.Contains(ivGenAlgs, iv) {
		return unsupportedf("IV generator '%s' not supported", iv)
	}
	if iv == "essiv" && !hasHash {
		return corruptf("Missing IV generator hash specification")
	}
	if err := p.check(); err != nil {
		return err
	}
	h.params = p
	return nil
}

// cipherAlg returns the algorithm with the header's key length.
func (h *header) cipherAlg(mode string) (string, error) {
	n := int(h.keyBytes)
	if mode == "xts" {
		if n%2 != 0 {
			return "", unsupportedf("XTS cipher key length should be a multiple of 2")
		}
		n /= 2
	}
	for _, alg := range cipherAlgs {
		if name, _, ok := strings.Cut(alg, "-"); ok && name == h.cipherName && cipherKeyBytes(alg) == n {
			return alg, nil
		}
	}
	return "", unsupportedf("Algorithm '%s' with key size %d bytes not supported", h.cipherName, n)
}
