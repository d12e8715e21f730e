package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/diskcrypt"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

// Encryption methods of the header (spec "Header", crypt_method).
const (
	cryptNone = 0
	cryptAES  = 1 // AES-128 in CBC mode, by guest offset
	cryptLUKS = 2 // a LUKS header in clusters of its own, by host offset
)

// prefix stands before the names of the options of encryption.
const cryptPrefix = "encrypt."

// crypt is the encryption of an open image.
type crypt struct {
	method uint32
	// offset and length of the LUKS header with its key material, in bytes.
	offset hostOffset
	length int64
	volume *diskcrypt.Volume // of LUKS
	cipher *diskcrypt.Cipher // nil if opened without data
	secret string            // the id of the passphrase that opened it
}

// cryptHeader is the data of the full disk encryption header pointer.
const cryptHeaderBytes = 16

// openCrypt reads the LUKS header and finds the key. Texts are stock's.
func (img *Image) openCrypt(ctx context.Context, opts format.OpenOptions) error {
	data, ok := findExtension(img.exts, extEncryption)
	c := &crypt{method: img.hdr.cryptMethod, secret: opts.Values[cryptPrefix+"key-secret"]}
	if ok {
		if c.method != cryptLUKS {
			return unsupportedf("CRYPTO header extension only expected with LUKS encryption method")
		}
		if err := c.place(data, img.g, img.file.Size()); err != nil {
			return err
		}
	}
	if c.method == cryptNone {
		return nil
	}
	if c.method == cryptLUKS && !ok {
		return corruptf("the image is encrypted with LUKS, but has no LUKS header")
	}
	if err := c.checkFormat(opts.Values[cryptPrefix+"format"]); err != nil {
		return err
	}
	var passphrase []byte
	if !opts.NoData {
		var err error
		if passphrase, err = encryption.Passphrase(opts.Secrets, cryptPrefix, c.secret); err != nil {
			return err
		}
		defer clear(passphrase)
	}
	img.crypt = c
	if c.method == cryptAES {
		if opts.NoData {
			return nil
		}
		var err error
		c.cipher, err = diskcrypt.NewQcowAES(passphrase)
		return err
	}
	store := cryptStore{img}
	var err error
	if c.volume, err = diskcrypt.ReadVolume(store); err != nil {
		return err
	}
	if opts.Untrusted {
		if err := c.volume.CheckCost(); err != nil {
			return err
		}
	}
	if !opts.NoData {
		c.cipher, err = c.volume.Unlock(ctx, store, passphrase)
	}
	return err
}

// place reads the header extension.
func (c *crypt) place(data []byte, g geometry, fileSize int64) error {
	if len(data) != cryptHeaderBytes {
		return corruptf("CRYPTO header extension size %d, but expected size %d", len(data), cryptHeaderBytes)
	}
	off, n := binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:])
	if off%uint64(g.clusterSize()) != 0 {
		return corruptf("Encryption header offset '%d' is not a multiple of cluster size '%d'", off, g.clusterSize())
	}
	if end := uint64(g.roundUp(fileSize)); off == 0 || n == 0 || off > end || n > end-off {
		return corruptf("Encryption header at offset %#x, %d bytes, does not lie in the file of %d bytes", off, n, fileSize)
	}
	c.offset, c.length = hostOffset(off), int64(n)
	return nil
}

// checkFormat refuses a runtime option encrypt.format that is not the image's.
func (c *crypt) checkFormat(want string) error {
	have := "aes"
	if c.method == cryptLUKS {
		have = "luks"
	}
	if want != "" && want != have {
		return unsupportedf("Header reported '%s' encryption format but options specify '%s'", have, want)
	}
	return nil
}

// cryptStore is the place of the LUKS header in the image file.
type cryptStore struct{ img *Image }

func (s cryptStore) at(off int64, n int) (int64, error) {
	c := s.img.crypt
	if off < 0 || off > c.length || int64(n) > c.length-off {
		return 0, corruptf("LUKS header: offset %d, %d bytes, does not lie in its %d bytes", off, n, c.length)
	}
	return int64(c.offset) + off, nil
}

// ReadAt implements [diskcrypt.HeaderStore].
func (s cryptStore) ReadAt(p []byte, off int64) (int, error) {
	at, err := s.at(off, len(p))
	if err != nil {
		return 0, err
	}
	n, err := s.img.file.ReadAt(p, at)
	if err == io.EOF {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

// WriteAt implements [diskcrypt.HeaderStore].
func (s cryptStore) WriteAt(p []byte, off int64) (int, error) {
	at, err := s.at(off, len(p))
	if err != nil {
		return 0, err
	}
	return s.img.wr.WriteAt(p, at)
}

// Flush implements [diskcrypt.HeaderStore].
func (s cryptStore) Flush() error { return s.img.barrier() }

// sector returns the number by which a sector is encrypted.
func (c *crypt) sector(off int64, host hostOffset) uint64 {
	if c.method == cryptLUKS {
		off = int64(host)
	}
	return uint64(off / diskcrypt.SectorSize)
}

// errNoKey is for guest data of an image that was opened only to be described.
func errNoKey() error {
	_, err := encryption.Passphrase(nil, cryptPrefix, "")
	return err
}

// readGuest reads the guest's bytes at guest offset off, which lie at host.
func (img *Image) readGuest(p []byte, off int64, host hostOffset) error {
	c := img.crypt
	if c == nil {
		return img.readData(p, host)
	}
	if c.cipher == nil {
		return errNoKey()
	}
	for len(p) > 0 {
		q := p
		in := off % diskcrypt.SectorSize
		if in == 0 && len(q) >= diskcrypt.SectorSize {
			q = q[:len(q)/diskcrypt.SectorSize*diskcrypt.SectorSize]
			if err := img.readData(q, host); err != nil {
				return err
			}
			c.cipher.Decrypt(q, q, c.sector(off, host))
		} else {
			var sector [diskcrypt.SectorSize]byte
			if err := img.readData(sector[:], host-hostOffset(in)); err != nil {
				return err
			}
			c.cipher.Decrypt(sector[:], sector[:], c.sector(off, host))
			q = q[:copy(q, sector[in:])]
		}
		p, off, host = p[len(q):], off+int64(len(q)), host+hostOffset(len(q))
	}
	return nil
}

// cryptChunk is the most bytes that are encrypted at once.
const cryptChunk = 1 << 20

// writeGuest writes the guest's bytes at guest offset off to host. Of an
// encrypted image it keeps what a sector holds beside them; the caller then
// holds the clusters alone.
func (img *Image) writeGuest(p []byte, off int64, host hostOffset) error {
	c := img.crypt
	if c == nil {
		return img.writeData(p, host)
	}
	if c.cipher == nil {
		return errNoKey()
	}
	buf := clusterBuffers.get(min(int64(len(p))+2*diskcrypt.SectorSize, cryptChunk))
	defer clusterBuffers.put(buf)
	for len(p) > 0 {
		in := off % diskcrypt.SectorSize
		n := min(len(p), len(buf)/diskcrypt.SectorSize*diskcrypt.SectorSize-int(in))
		b := buf[:(int(in)+n+diskcrypt.SectorSize-1)/diskcrypt.SectorSize*diskcrypt.SectorSize]
		start, place := off-in, host-hostOffset(in)
		src := p
		if len(b) != n {
			for _, at := range []int{0, len(b) - diskcrypt.SectorSize} {
				if err := img.oldSector(b[at:at+diskcrypt.SectorSize], start+int64(at), place+hostOffset(at)); err != nil {
					return err
				}
			}
			copy(b[in:], p[:n])
			src = b
		}
		c.cipher.Encrypt(b, src[:len(b)], c.sector(start, place))
		if err := img.writeData(b, place); err != nil {
			return err
		}
		p, off, host = p[n:], off+int64(n), host+hostOffset(n)
	}
	return nil
}

// oldSector reads a sector that is to be written again. In a cluster that is
// being filled it may not be there yet; what it then holds is replaced by the
// writes that follow.
func (img *Image) oldSector(p []byte, off int64, host hostOffset) error {
	n, err := img.dataNode().ReadAt(p, int64(host))
	if err != nil && err != io.EOF {
		return err
	}
	clear(p[n:])
	img.crypt.cipher.Decrypt(p, p, img.crypt.sector(off, host))
	return nil
}

// fillGuest writes zeros of the guest to host clusters.
func (img *Image) fillGuest(ctx context.Context, off, host, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(zeroBuffer)))
		if err := img.writeGuest(zeroBuffer[:k], off, hostOffset(host)); err != nil {
			return err
		}
		off, host, n = off+k, host+k, n-k
	}
	return nil
}

// amendEncryption changes the key slots of LUKS.
func (img *Image) amendEncryption(ctx context.Context, opts format.AmendOptions) error {
	c := img.crypt
	switch {
	case c == nil:
		return unsupportedf("Can't amend encryption options - encryption not present")
	case c.method != cryptLUKS:
		return unsupportedf("Only LUKS encryption options can be amended")
	}
	change, err := encryption.SlotChange(opts, cryptPrefix, c.secret)
	if err != nil {
		return err
	}
	return c.volume.ChangeSlots(ctx, cryptStore{img}, change)
}

// info describes the encryption, in stock's order.
func (c *crypt) info() []format.InfoField {
	if c.method == cryptAES {
		return []format.InfoField{{Name: "format", Key: "format", Value: "aes"}}
	}
	return encryption.LUKSInfo(c.volume.Info(), format.InfoField{Name: "format", Key: "format", Value: "luks"})
}

// cryptPlan is the encryption of a new image.
type cryptPlan struct {
	method    uint32
	opts      encryption.Options
	bytes     int64            // of the LUKS header with its key material
	parts     map[int64][]byte // of it, by offset
	cipher    *diskcrypt.Cipher
	formatSet bool   // encrypt.format was given
	alias     string // value of encryption
	others    []string
}

// set takes a creation option over.
func (p *cryptPlan) set(k, v string) error {
	if k == "encryption" {
		on, err := parseBool(k, v)
		if p.alias = v; err == nil && on {
			p.method = max(p.method, cryptAES)
		}
		return err
	}
	name := k[len(cryptPrefix):]
	if name == "format" {
		p.formatSet = true
		switch v {
		case "aes":
			p.method = cryptAES
		case "luks":
			p.method = cryptLUKS
		default:
			return unsupportedf("Parameter 'format' does not accept value '%s'", v)
		}
		return nil
	}
	ours, err := p.opts.Set(name, v)
	if err == nil && !ours {
		return unsupportedf("Invalid parameter '%s'", k)
	}
	p.others = append(p.others, k)
	return err
}

// check checks the options against each other, and that the key is there.
func (p *cryptPlan) check(secrets format.Secrets) error {
	switch {
	case p.formatSet && p.alias != "":
		return unsupportedf("'encrypt.format' and its alias 'encryption' can't be used at the same time")
	case p.method == cryptNone && len(p.others) > 0:
		return unsupportedf("Parameter 'encrypt.format' is missing")
	case p.method == cryptNone:
		return nil
	}
	for _, k := range p.others {
		if p.method == cryptAES && k != cryptPrefix+"key-secret" {
			return unsupportedf("Parameter '%s' is unexpected", k)
		}
	}
	if err := p.opts.Params.CheckNames(); err != nil {
		return err
	}
	passphrase, err := encryption.Passphrase(secrets, cryptPrefix, p.opts.KeySecret)
	clear(passphrase)
	if err != nil || p.method == cryptAES {
		return err
	}
	p.bytes, err = p.opts.Params.PayloadOffset()
	return err
}

// extension is the header extension for a LUKS header at off.
func (p *cryptPlan) extension(off int64) extension {
	b := binary.BigEndian.AppendUint64(nil, uint64(off))
	return extension{extEncryption, binary.BigEndian.AppendUint64(b, uint64(p.bytes))}
}

// make makes the keys.
func (p *cryptPlan) make(ctx context.Context, secrets format.Secrets) error {
	if p.method == cryptNone {
		return nil
	}
	passphrase, err := encryption.Passphrase(secrets, cryptPrefix, p.opts.KeySecret)
	if err != nil {
		return err
	}
	defer clear(passphrase)
	if p.method == cryptAES {
		p.cipher, err = diskcrypt.NewQcowAES(passphrase)
		return err
	}
	_, p.cipher, p.parts, err = diskcrypt.New(ctx, passphrase, p.opts.NewOptions)
	return err
}

// fill writes zeros of the guest to the data clusters of a new image of
// version 2, which has no other way to say that they are zeros.
func (p *createPlan) fill(ctx context.Context, w block.Writer, host int64) error {
	c := &crypt{method: p.crypt.method}
	b := make([]byte, cryptChunk)
	for off, end := int64(0), p.g.roundUp(p.size); off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(end-off, int64(len(b)))
		p.crypt.cipher.Encrypt(b[:n], zeroBuffer[:n], c.sector(off, hostOffset(host)))
		if _, err := w.WriteAt(b[:n], host); err != nil {
			return fmt.Errorf("write encrypted zeros: %w", err)
		}
		off, host = off+n, host+n
	}
	return nil
}
