package format

// HeadSize is how many bytes at the beginning of an image's file a mark of
// [Unfinished] may change: one sector, which a disk writes wholly or not at
// all.
const HeadSize = 512

// Unfinished is a driver whose images can say that they are unfinished: the
// program that fills one marks it before its first change and clears the mark
// when all the rest is safe, so that an interruption never leaves something
// that looks like an image and is not. Open refuses a marked image with an
// error that matches block.ErrUnfinished.
type Unfinished interface {
	// MarkUnfinished changes head, the first HeadSize bytes of an image's
	// file or what there is of them, so that no program opens the image by
	// accident. What is no image of the format stays as it is.
	MarkUnfinished(head []byte)
	// ClearUnfinished takes the mark off head again and reports whether
	// there was one. A mark that hides bytes leaves zeros in their place.
	ClearUnfinished(head []byte) bool
}
