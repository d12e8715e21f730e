package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// bufferSize is how much is read at once, at most: 255 pages with their heads.
	bufferSize = 1 << 20
	// leastRoom is how much must be free for another read behind what is there.
	leastRoom = 64 << 10
)

// input reads the stream into a buffer, in which what it returns stays until the
// buffer is moved.
type input struct {
	src    io.Reader
	buf    []byte
	r, w   int   // what is there and was not taken
	at     int64 // offset in the stream of buf[0]
	onMove func() error
}

// offset is where the next byte is in the stream.
func (in *input) offset() int64 { return in.at + int64(in.r) }

// need makes n bytes be there.
func (in *input) need(n int) error {
	if in.w-in.r >= n {
		return nil
	}
	if len(in.buf)-in.w < leastRoom || in.r+n > len(in.buf) {
		if err := in.onMove(); err != nil {
			return err
		}
		copy(in.buf, in.buf[in.r:in.w])
		in.at += int64(in.r)
		in.r, in.w = 0, in.w-in.r
	}
	for idle := 0; in.w-in.r < n; {
		got, err := in.src.Read(in.buf[in.w:])
		if got < 0 || got > len(in.buf)-in.w {
			return errors.New("the reader says that it read more than there is room for")
		}
		in.w += got
		switch {
		case in.w-in.r >= n:
			return nil
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case got > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}

// take returns the next n bytes, at most bufferSize-leastRoom of them. They stay
// until the buffer moves.
func (in *input) take(n int) ([]byte, error) {
	if err := in.need(n); err != nil {
		return nil, in.fail(err)
	}
	b := in.buf[in.r : in.r+n]
	in.r += n
	return b, nil
}

func (in *input) u8() (byte, error) {
	b, err := in.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

func (in *input) u32() (uint32, error) {
	b, err := in.take(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b), nil
}

func (in *input) u64() (uint64, error) {
	b, err := in.take(8)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// name reads a name with its length in a byte before it.
func (in *input) name() ([]byte, error) {
	n, err := in.u8()
	if err != nil {
		return nil, err
	}
	return in.take(int(n))
}

// fail says where an error was met. One that is an io.ErrUnexpectedEOF too may have
// its cause at the other end.
func (in *input) fail(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early, at byte %d: %w", ErrFormat, in.at+int64(in.w), err)
	}
	return fmt.Errorf("migration stream, byte %d: %w", in.offset(), err)
}

// unknown is an ErrFormat at the present place.
func (in *input) unknown(format string, args ...any) error {
	return fmt.Errorf("%w: byte %d: %s", ErrFormat, in.offset(), fmt.Sprintf(format, args...))
}
