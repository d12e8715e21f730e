package raw

import (
	"errors"
	"io"

	"github.com/lamina-vm/lamina/block"
)

// unfinishedMagic begins the first sector of an unfinished image; the text
// behind it is for a person who looks at the file.
const (
	unfinishedMagic = "\x00LAMINA UNFINISHED IMAGE\x00"
	unfinishedText  = "\nThis disk image is not complete: the program that filled it was interrupted.\n" +
		"Its first sector is written when all the rest is safe. Run the conversion again.\n"
)

// MarkUnfinished implements [format.Unfinished]: the mark takes the place of
// the first sector.
func (Driver) MarkUnfinished(head []byte) {
	clear(head)
	copy(head, unfinishedMagic+unfinishedText)
}

// ClearUnfinished implements [format.Unfinished].
func (Driver) ClearUnfinished(head []byte) bool {
	marked := len(head) >= len(unfinishedMagic) && string(head[:len(unfinishedMagic)]) == unfinishedMagic
	if marked {
		clear(head)
	}
	return marked
}

// refuseUnfinished fails for a file that is marked.
func refuseUnfinished(file block.Node) error {
	if file.Size() < int64(len(unfinishedMagic)) {
		return nil
	}
	head := make([]byte, len(unfinishedMagic))
	if _, err := file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if string(head) != unfinishedMagic {
		return nil
	}
	return block.ErrUnfinished
}
