package diskcrypt

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"fmt"
	"hash"
	"io"
	"math"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/block"
)

// Volume is the header of a LUKS1 volume: which algorithms encrypt it, and the
// key slots, each of which opens it with a passphrase of its own. Its methods
// are safe for concurrent use.
type Volume struct {
	mu sync.Mutex // guards h; held while slots are changed
	h  *header
}

// DefaultIterTime is how long PBKDF2 is to take with a new key slot unless
// somebody says otherwise.
const DefaultIterTime = 2 * time.Second

// minIterations of PBKDF2, whatever the time says.
const minIterations = 1000

// NewOptions are the choices of [New].
type NewOptions struct {
	Params Params
	// IterTime is the processor time that PBKDF2 is to take; 0 means
	// DefaultIterTime.
	IterTime time.Duration
}

// New makes a new volume with one key slot for passphrase. It returns its
// header and the bytes of its first PayloadOffset bytes that are not zero:
// header, and key material, to be written at the offsets that are their keys.
// A text that a person caused is stock's.
func New(ctx context.Context, passphrase []byte, opts NewOptions) (*Volume, *Cipher, map[int64][]byte, error) {
	p := opts.Params.withDefaults()
	if err := p.CheckNames(); err != nil {
		return nil, nil, nil, err
	}
	if err := p.check(); err != nil {
		return nil, nil, nil, err
	}
	h, err := newHeader(p)
	if err != nil {
		return nil, nil, nil, err
	}
	key := make([]byte, h.keyBytes)
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return nil, nil, nil, err
	}
	c, err := newCipher(p, key)
	if err != nil {
		return nil, nil, nil, err
	}
	newHash := newHash(p.HashAlg)
	if h.iterations, err = iterationsFor(newHash, digestBytes, opts.IterTime, 8); err != nil {
		return nil, nil, nil, err
	}
	digest, err := pbkdf2(ctx, newHash, key, h.salt[:], h.iterations, digestBytes)
	if err != nil {
		return nil, nil, nil, err
	}
	copy(h.digest[:], digest)
	material, err := h.fillSlot(ctx, 0, passphrase, key, opts.IterTime)
	if err != nil {
		return nil, nil, nil, err
	}
	parts := map[int64][]byte{0: h.encode(), int64(h.slots[0].offset) * SectorSize: material}
	return &Volume{h: h}, c, parts, nil
}

// PayloadOffset returns where the disk begins in a new volume, in bytes, that
// is how large the header is with all its key material.
func (p Params) PayloadOffset() (int64, error) {
	p = p.withDefaults()
	if err := p.CheckNames(); err != nil {
		return 0, err
	}
	if err := p.check(); err != nil {
		return 0, err
	}
	h := &header{keyBytes: uint32(p.keyBytes())}
	return int64(alignSectors+Slots*h.materialSectors()) * SectorSize, nil
}

// newHeader returns a header with salts, UUID and empty slots.
func newHeader(p Params) (*header, error) {
	family, _, _ := bytes.Cut([]byte(p.CipherAlg), []byte{'-'})
	h := &header{
		version: luksVersion, cipherName: string(family), cipherMode: p.CipherMode + "-" + p.IVGenAlg,
		hashSpec: p.HashAlg, keyBytes: uint32(p.keyBytes()), params: p,
	}
	if p.IVGenHashAlg != "" {
		h.cipherMode += ":" + p.IVGenHashAlg
	}
	n := uint32(h.materialSectors())
	h.payload = alignSectors + Slots*n
	for i := range h.slots {
		h.slots[i] = slot{active: slotDisabled, offset: alignSectors + uint32(i)*n, stripes: stripes}
	}
	if _, err := rand.Read(h.salt[:]); err != nil {
		return nil, err
	}
	var u [16]byte
	if _, err := rand.Read(u[:]); err != nil {
		return nil, err
	}
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // version 4, RFC 9562
	copy(h.uuid[:], fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
	return h, nil
}

// iterationsFor returns how many iterations for n bytes take the time t,
// divided by share.
func iterationsFor(newHash func() hash.Hash, n int, t time.Duration, share uint64) (uint32, error) {
	if t == 0 {
		t = DefaultIterTime
	}
	if t < time.Millisecond { // less than the least number takes
		return minIterations, nil
	}
	k := float64(countIterations(newHash, n)) * t.Seconds() / float64(share)
	if k > math.MaxUint32 {
		return 0, unsupportedf("PBKDF iterations %.0f larger than %d", k, uint32(math.MaxUint32))
	}
	return max(uint32(k), minIterations), nil
}

// fillSlot describes a slot that opens with passphrase, as active, and returns
// its key material.
func (h *header) fillSlot(ctx context.Context, i int, passphrase, key []byte, iterTime time.Duration) ([]byte, error) {
	s := &h.slots[i]
	newHash := newHash(h.params.HashAlg)
	iterations, err := iterationsFor(newHash, len(key), iterTime, 1)
	if err != nil {
		return nil, err
	}
	next := slot{active: slotEnabled, iterations: iterations, offset: s.offset, stripes: stripes}
	if _, err := rand.Read(next.salt[:]); err != nil {
		return nil, err
	}
	slotKey, err := pbkdf2(ctx, newHash, passphrase, next.salt[:], iterations, len(key))
	if err != nil {
		return nil, err
	}
	defer clear(slotKey)
	c, err := newCipher(h.params, slotKey)
	if err != nil {
		return nil, err
	}
	material, err := afSplit(newHash, key, stripes)
	if err != nil {
		return nil, err
	}
	material = wholeSectors(material)
	c.Encrypt(material, material, 0)
	*s = next
	return material, nil
}

// wholeSectors pads b with zeros.
func wholeSectors(b []byte) []byte {
	if rest := len(b) % SectorSize; rest != 0 {
		b = append(b, make([]byte, SectorSize-rest)...)
	}
	return b
}

// ReadVolume reads the header that lies at offset 0 of r and checks it. Memory
// and time do not depend on what it says.
func ReadVolume(r io.ReaderAt) (*Volume, error) {
	b := make([]byte, HeaderBytes)
	n, err := r.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, stockf("Could not read encryption header: %w", err)
	}
	h, err := decodeHeader(b[:n])
	if err != nil {
		return nil, err
	}
	return &Volume{h: h}, nil
}

// PayloadOffset is where the disk begins, in bytes.
func (v *Volume) PayloadOffset() int64 { return int64(v.h.payload) * SectorSize }

// maxCost bounds the iterations that a volume from outside may ask for, in all
// its slots: some minutes.
const maxCost = 1 << 28

// CheckCost refuses, with block.ErrUntrusted, a volume with which trying one
// passphrase takes longer than anybody who does not know it should have to
// wait. What QEMU and cryptsetup write is far below.
func (v *Volume) CheckCost() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var cost uint64
	for _, s := range v.h.slots {
		if s.active == slotEnabled {
			cost += uint64(s.iterations) + uint64(v.h.iterations)
		}
	}
	if cost > maxCost {
		return &textError{fmt.Sprintf("LUKS header: trying a passphrase takes %d iterations of PBKDF2, an image from outside may ask for %d", cost, maxCost), block.ErrUntrusted}
	}
	return nil
}

// Unlock tries a passphrase with the active slots, in order, and returns the
// cipher of the disk. r is what ReadVolume read. The error matches
// [ErrPassphrase] where the passphrase opens none. What it costs is in the
// header; ctx ends it early.
func (v *Volume) Unlock(ctx context.Context, r io.ReaderAt, passphrase []byte) (*Cipher, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key, err := v.h.masterKey(ctx, r, passphrase)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return newCipher(v.h.params, key)
}

// masterKey returns the key that the first matching slot holds.
func (h *header) masterKey(ctx context.Context, r io.ReaderAt, passphrase []byte) ([]byte, error) {
	for i := range h.slots {
		key, err := h.openSlot(ctx, r, i, passphrase)
		if err != nil || key != nil {
			return key, err
		}
	}
	return nil, ErrPassphrase
}

// openSlot returns the master key if the slot is active and opens with the
// passphrase, else nil.
func (h *header) openSlot(ctx context.Context, r io.ReaderAt, i int, passphrase []byte) ([]byte, error) {
	s := &h.slots[i]
	if s.active != slotEnabled {
		return nil, nil
	}
	newHash := newHash(h.params.HashAlg)
	slotKey, err := pbkdf2(ctx, newHash, passphrase, s.salt[:], s.iterations, int(h.keyBytes))
	if err != nil {
		return nil, err
	}
	defer clear(slotKey)
	n := int(h.keyBytes) * stripes
	material := wholeSectors(make([]byte, n))
	defer clear(material)
	if _, err := r.ReadAt(material, int64(s.offset)*SectorSize); err != nil && err != io.EOF {
		return nil, stockf("Could not read encryption header: %w", err)
	}
	c, err := newCipher(h.params, slotKey)
	if err != nil {
		return nil, err
	}
	c.Decrypt(material, material, 0)
	key := afMerge(newHash, material[:n], int(h.keyBytes))
	digest, err := pbkdf2(ctx, newHash, key, h.salt[:], h.iterations, digestBytes)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(digest, h.digest[:]) {
		clear(key)
		return nil, nil
	}
	return key, nil
}

// SlotInfo is what there is to say of a key slot.
type SlotInfo struct {
	Active     bool
	KeyOffset  int64 // bytes
	Iterations int64 // with an active slot
	Stripes    int64 // with an active slot
}

// VolumeInfo is what there is to say of a volume.
type VolumeInfo struct {
	Params
	UUID          string
	Slots         [Slots]SlotInfo
	PayloadOffset int64 // bytes
	Iterations    int64 // of the master key's digest
}

// Info describes the volume.
func (v *Volume) Info() VolumeInfo {
	v.mu.Lock()
	defer v.mu.Unlock()
	uuid, _, _ := bytes.Cut(v.h.uuid[:], []byte{0})
	info := VolumeInfo{
		Params: v.h.params, UUID: string(uuid), PayloadOffset: int64(v.h.payload) * SectorSize, Iterations: int64(v.h.iterations),
	}
	for i, s := range v.h.slots {
		info.Slots[i].KeyOffset = int64(s.offset) * SectorSize
		if s.active == slotEnabled {
			info.Slots[i] = SlotInfo{true, int64(s.offset) * SectorSize, int64(s.iterations), int64(s.stripes)}
		}
	}
	return info
}
