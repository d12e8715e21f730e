package qmp

import (
	"encoding/json"
	"fmt"
	"io"
)

// decoder reads a server's messages and bounds the size of each one.
type decoder struct {
	json  *json.Decoder
	limit *messageReader
}

// messageReader fails once more than MaxMessage bytes have been read for one
// message, so that a server cannot make the JSON decoder's buffer grow
// without end.
type messageReader struct {
	r    io.Reader
	left int
}

func (m *messageReader) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, fmt.Errorf("message is larger than %d bytes", MaxMessage)
	}
	n, err := m.r.Read(p[:min(len(p), m.left)])
	m.left -= n
	return n, err
}

func newDecoder(r io.Reader) *decoder {
	limit := &messageReader{r: r}
	return &decoder{json: json.NewDecoder(limit), limit: limit}
}

// next returns the next message.
func (d *decoder) next() (message, error) {
	var m message
	d.limit.left = MaxMessage
	if err := d.json.Decode(&m); err != nil {
		return message{}, err
	}
	return m, nil
}
