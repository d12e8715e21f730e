package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/lamina-vm/lamina/format/qcow2/internal/inflate"
)

// deflateWindow is the largest distance that we emit: other readers inflate
// clusters with a window of 4 KiB (spec "Compressed Clusters").
const deflateWindow = 4096

// buffers keeps buffers of one size for reuse.
type buffers struct{ pool sync.Pool }

func (b *buffers) get(n int64) []byte {
	if p, _ := b.pool.Get().(*[]byte); p != nil && int64(cap(*p)) >= n {
		return (*p)[:n]
	}
	return make([]byte, n)
}

func (b *buffers) put(p []byte) {
	if p != nil {
		b.pool.Put(&p)
	}
}

// readCompressed fills p from the compressed cluster of entry e that holds off.
func (img *Image) readCompressed(p []byte, off int64, e l2Entry) error {
	in := img.g.inCluster(off)
	if img.inflated.read(p, in, e) {
		return nil
	}
	host, n := e.compressedRange(img.g)
	packed := clusterBuffers.get(n)
	defer clusterBuffers.put(packed)
	got, err := img.file.ReadAt(packed, int64(host))
	if err != nil && err != io.EOF {
		return err
	}
	if got == 0 {
		return corruptf("compressed cluster at offset %#x lies behind the end of the file (%d bytes): the file is truncated or the L2 table is damaged", int64(host), img.file.Size())
	}
	unpack := func(dst []byte) error {
		if err := decompress(dst, packed[:got], img.hdr.compressionType); err != nil {
			return corruptf("compressed cluster at offset %#x, %d bytes: %v", int64(host), n, err)
		}
		return nil
	}
	cs := img.g.clusterSize()
	if int64(len(p)) == cs {
		// Nothing is left of it for the next read, so it need not be
		// remembered, nor copied.
		return unpack(p)
	}
	data := clusterBuffers.get(cs)
	if err := unpack(data); err != nil {
		clusterBuffers.put(data)
		return err
	}
	copy(p, data[in:])
	clusterBuffers.put(img.inflated.put(e, data))
	return nil
}

var clusterBuffers buffers

// decompress fills dst, one cluster, from src, which may go on behind the
// compressed bytes.
func decompress(dst, src []byte, method uint8) error {
	if method == compressionZstd {
		return unzstd(dst, src)
	}
	return unpackDeflate(dst, src)
}

// unpackDeflate decodes a raw deflate stream of any window.
func unpackDeflate(dst, src []byte) error {
	n, err := inflate.Decode(dst, src)
	if err == nil && n < len(dst) {
		err = fmt.Errorf("deflate stream gives %d of %d bytes", n, len(dst))
	}
	return err
}

var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecodeAllCapLimit(true))
})

// unzstd decodes the first zstd frame of src.
func unzstd(dst, src []byte) error {
	n, err := zstdFrameLength(src)
	if err != nil {
		return err
	}
	d, err := zstdDecoder()
	if err != nil {
		return err
	}
	// It may fill dst up to its capacity.
	out, err := d.DecodeAll(src[:n], dst[:0:len(dst)])
	if err != nil {
		return err
	}
	if len(out) != len(dst) {
		return fmt.Errorf("zstd frame gives %d of %d bytes", len(out), len(dst))
	}
	return nil
}

// zstdFrameLength returns the length of the frame at the start of b, found from
// its block headers (RFC 8878, 3.1.1), so that the padding behind it is not
// taken for another frame.
func zstdFrameLength(b []byte) (int, error) {
	if len(b) < 5 || binary.LittleEndian.Uint32(b) != 0xfd2fb528 {
		return 0, fmt.Errorf("no zstd frame")
	}
	desc := b[4]
	pos := 5 + [4]int{0, 1, 2, 4}[desc&3]
	single := desc&0x20 != 0
	if !single {
		pos++ // window descriptor
	}
	switch size := desc >> 6; {
	case size > 0:
		pos += 1 << size
	case single:
		pos++
	}
	for {
		if pos+3 > len(b) {
			return 0, fmt.Errorf("zstd frame is cut off at byte %d", len(b))
		}
		h := int(b[pos]) | int(b[pos+1])<<8 | int(b[pos+2])<<16
		size := h >> 3
		switch h >> 1 & 3 {
		case 1:
			size = 1 // run of one byte
		case 3:
			return 0, fmt.Errorf("zstd block type is reserved")
		}
		pos += 3 + size
		if h&1 != 0 {
			break
		}
	}
	if desc&4 != 0 {
		pos += 4 // checksum
	}
	if pos > len(b) {
		return 0, fmt.Errorf("zstd frame is cut off: %d of %d bytes", len(b), pos)
	}
	return pos, nil
}

// compressor compresses clusters of one image; it is used by one goroutine at
// a time.
type compressor struct {
	buf     bytes.Buffer
	deflate *flate.Writer
}

var compressors = sync.Pool{New: func() any { return new(compressor) }}

var zstdEncoder = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithWindowSize(1<<maxClusterBits), zstd.WithSingleSegment(true))
})

// compress returns p compressed, in memory that is valid until the next call,
// or nil if that would not save at least a byte.
func (c *compressor) compress(p []byte, method uint8) ([]byte, error) {
	var out []byte
	if method == compressionZstd {
		e, err := zstdEncoder()
		if err != nil {
			return nil, err
		}
		c.buf.Reset()
		out = e.EncodeAll(p, c.buf.AvailableBuffer())
		c.buf.Write(out) // keeps the capacity
	} else {
		c.buf.Reset()
		if c.deflate == nil {
			w, err := flate.NewWriterWindow(&c.buf, deflateWindow)
			if err != nil {
				return nil, err
			}
			c.deflate = w
		} else {
			c.deflate.Reset(&c.buf)
		}
		if _, err := c.deflate.Write(p); err != nil {
			return nil, err
		}
		if err := c.deflate.Close(); err != nil {
			return nil, err
		}
		out = c.buf.Bytes()
	}
	if len(out) >= len(p) {
		return nil, nil
	}
	return out, nil
}
