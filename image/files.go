package image

import (
	"context"
	"slices"

	"github.com/lamina-vm/lamina/format"
)

// Files lists the files of an image and of all images below it, with their
// data files: who removes one of them destroys the image. formatName is as in
// [Options].Format. No lock is taken, and no key is needed. It is an error where
// not all of them can be read, as one that is missing; errors are as of [Open].
func Files(ctx context.Context, name, formatName string) ([]string, error) {
	im, err := Open(ctx, name, Options{Format: formatName, NoLock: true})
	if err != nil {
		return encryptedFiles(ctx, name, formatName, err)
	}
	defer func() { _ = im.Close() }() // only read
	var files []string
	for _, l := range im.Layers() {
		files = append(files, l.File())
		if l.DataFile() != "" {
			files = append(files, l.DataFile())
		}
	}
	return files, nil
}

// encryptedFiles is Files of an image that cannot be opened for want of a
// key, by the headers, which are not encrypted. It returns opened where that is not
// the reason.
func encryptedFiles(ctx context.Context, name, formatName string, opened error) ([]string, error) {
	infos, err := Inspect(ctx, name, InfoOptions{Format: formatName, NoLock: true, Chain: true})
	if err != nil {
		return nil, opened
	}
	encrypted := false
	var files []string
	for _, info := range infos {
		encrypted = encrypted || info.Encrypted
		loc, err := parseName(info.Filename)
		if err != nil || loc.opts != nil || loc.path == "" {
			return nil, opened
		}
		files = append(files, loc.path)
		if slices.ContainsFunc(info.Specific, func(f format.InfoField) bool { return f.Key == "data-file" }) {
			return nil, opened // which one only its opening tells for sure
		}
	}
	if !encrypted {
		return nil, opened
	}
	return files, nil
}
