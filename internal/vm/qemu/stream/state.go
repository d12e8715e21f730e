package stream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// Behind the stream, which a QEMU reads no further than its end, the state has a
// seal: what tells later that it and the RAM file are whole and belong together.
//
//	ram size u64, stream length u64, stream CRC-32C u32, number of samples u32
//	samples: offset in the RAM file u64, CRC-32C of the page there u32
//	length of the above u32, its CRC-32C u32, mark
const (
	sealMark    = "LAMINA-1"
	sealFixed   = 24
	sealSample  = 12
	sealTail    = 16
	sealSamples = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged: a frozen machine's files are not what they were; the wrapping error
// names the file.
var ErrDamaged = errors.New("damaged")

// stateWriter writes the state and keeps its first error.
type stateWriter struct {
	w   *bufio.Writer
	n   int64
	sum uint32
	err error
}

func newStateWriter(w io.Writer) *stateWriter {
	return &stateWriter{w: bufio.NewWriterSize(w, 256<<10)}
}

func (s *stateWriter) write(b []byte) {
	if s.err != nil {
		return
	}
	if s.n += int64(len(b)); s.n > maxState {
		s.err = fmt.Errorf("%w: it makes a state of more than %d MiB", ErrFormat, maxState>>20)
		return
	}
	s.sum = crc32.Update(s.sum, castagnoli, b)
	_, s.err = s.w.Write(b)
}

func (s *stateWriter) writeU32(v uint32) { s.write(binary.BigEndian.AppendUint32(nil, v)) }
func (s *stateWriter) writeU64(v uint64) { s.write(binary.BigEndian.AppendUint64(nil, v)) }

func (s *stateWriter) writeName(name string) {
	s.write([]byte{byte(len(name))})
	s.write([]byte(name))
}

// seal ends the state.
func (s *stateWriter) seal(ram *ramFile) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(ram.size))
	b = binary.BigEndian.AppendUint64(b, uint64(s.n))
	b = binary.BigEndian.AppendUint32(b, s.sum)
	samples, err := ram.samples()
	if err != nil {
		return err
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(samples)/sealSample))
	b = append(b, samples...)
	tail := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	tail = binary.BigEndian.AppendUint32(tail, crc32.Checksum(b, castagnoli))
	s.write(b)
	s.write(tail)
	s.write([]byte(sealMark))
	if s.err == nil {
		s.err = s.w.Flush()
	}
	return s.err
}

// samples are pages of the RAM file, spread evenly over those that are no holes.
func (m *ramFile) samples() ([]byte, error) {
	var b []byte
	page := make([]byte, PageSize)
	step := max(count(m.data)/sealSamples, 1)
	at := int64(0)
	err := runs(m.data, func(first, n int64) error {
		for i := first; i < first+n; i++ {
			if at++; (at-1)%step != 0 || len(b) == sealSamples*sealSample {
				continue
			}
			if _, err := m.f.ReadAt(page, i*PageSize); err != nil {
				return err
			}
			b = binary.BigEndian.AppendUint64(b, uint64(i*PageSize))
			b = binary.BigEndian.AppendUint32(b, crc32.Checksum(page, castagnoli))
		}
		return nil
	})
	return b, err
}

// Check says whether a state and a RAM file are whole and belong together. It reads
// all of the state and some pages of the RAM, up to 64. The error is an
// [ErrDamaged] that names the file.
func Check(state, ram *os.File) error {
	damaged := func(f *os.File, format string, args ...any) error {
		return fmt.Errorf("%s is %w: %s", f.Name(), ErrDamaged, fmt.Sprintf(format, args...))
	}
	st, err := state.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	if size < sealFixed+sealTail || size > maxState {
		return damaged(state, "it has %d bytes", size)
	}
	seal, err := readSeal(state, size)
	if err == io.EOF {
		return damaged(state, "it was cut while it was read")
	} else if err != nil {
		return err
	}
	if seal == nil {
		return damaged(state, "it does not end as it should: it was cut, or is no state of a frozen machine")
	}
	n := size - int64(len(seal)) - sealTail
	if length := int64(binary.BigEndian.Uint64(seal[8:])); length != n {
		return damaged(state, "it has %d bytes of devices, not %d", n, length)
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(state, 0, n)); err != nil {
		return err
	}
	if sum.Sum32() != be32(seal[16:]) {
		return damaged(state, "its checksum is wrong")
	}
	rst, err := ram.Stat()
	if err != nil {
		return err
	}
	if want := int64(binary.BigEndian.Uint64(seal)); rst.Size() != want {
		return damaged(ram, "it has %d bytes, and the guest %d of RAM", rst.Size(), want)
	}
	page := make([]byte, PageSize)
	for b := seal[sealFixed:]; len(b) >= sealSample; b = b[sealSample:] {
		offset := int64(binary.BigEndian.Uint64(b))
		if offset < 0 || offset > rst.Size()-PageSize {
			return damaged(state, "it has a page at %d", offset)
		}
		if _, err := ram.ReadAt(page, offset); err == io.EOF {
			return damaged(ram, "it was cut while it was read")
		} else if err != nil {
			return err
		}
		if crc32.Checksum(page, castagnoli) != be32(b[8:]) {
			return damaged(ram, "the page at %d is not what it was: it was changed, or is of another machine", offset)
		}
	}
	return nil
}

// readSeal returns the seal without its tail, nil where there is none.
func readSeal(f *os.File, size int64) ([]byte, error) {
	tail := make([]byte, sealTail)
	if _, err := f.ReadAt(tail, size-sealTail); err != nil {
		return nil, err
	}
	n := int64(be32(tail))
	if string(tail[8:]) != sealMark || n < sealFixed || n > sealFixed+sealSamples*sealSample || n > size-sealTail {
		return nil, nil
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, size-sealTail-n); err != nil {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != be32(tail[4:]) || int64(be32(b[20:]))*sealSample != n-sealFixed {
		return nil, nil
	}
	return b, nil
}
