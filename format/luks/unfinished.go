package luks

import (
	"bytes"
	"errors"
	"io"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var _ format.Unfinished = Driver{}

// The magics of a whole volume and of one that is being filled. Both are
// followed by the version.
const (
	magic           = "LUKS\xba\xbe"
	unfinishedMagic = "LAMINA"
	version         = "\x00\x01"
)

// MarkUnfinished implements [format.Unfinished]. The rest of the header stays:
// the volume can be filled again with the same key.
func (Driver) MarkUnfinished(head []byte) {
	if bytes.HasPrefix(head, []byte(magic)) {
		copy(head, unfinishedMagic)
	}
}

// ClearUnfinished implements [format.Unfinished].
func (Driver) ClearUnfinished(head []byte) bool {
	marked := isUnfinished(head)
	if marked {
		copy(head, magic)
	}
	return marked
}

func isUnfinished(head []byte) bool { return bytes.HasPrefix(head, []byte(unfinishedMagic+version)) }

// refuseUnfinished fails for a file that is marked.
func refuseUnfinished(file block.Node) error {
	head := make([]byte, len(unfinishedMagic+version))
	if _, err := file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if isUnfinished(head) {
		return block.ErrUnfinished
	}
	return nil
}
