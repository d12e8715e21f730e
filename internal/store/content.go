package store

import (
	"context"
	"errors"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
)

// Content implements [Images].
func (diskImages) Content(ctx context.Context, path, format string, untrusted bool) (n int64, err error) {
	im, err := image.Open(ctx, path, image.Options{Format: format, NoLock: true, Untrusted: untrusted})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	for e, err := range im.Node().Extents(0, im.Node().Size()) {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return 0, err
		}
		if e.Kind == block.Data || e.Kind == block.Compressed {
			n += e.Length
		}
	}
	return n, nil
}

// stored is what an image of so much content takes at most: with tables and
// reference counts, and the rest of its last clusters.
func stored(content int64) int64 { return content + content>>9 + 1<<20 }

// SizeOfCopy is how many bytes one whole image of a layer takes at most, which is not
// compressed: what Flatten of a running machine over it, and Repack, write. 0 of "".
func (s *Store) SizeOfCopy(ctx context.Context, key string) (int64, error) {
	if key == "" {
		return 0, nil
	}
	if err := s.Intact(ctx, key); err != nil {
		return 0, err
	}
	list, err := s.chain(ctx, s.db, key)
	if err != nil {
		return 0, err
	}
	n, err := s.images.Content(ctx, list[0].path(s), "qcow2", false)
	return stored(n), err
}

// SizeOfImport is how many bytes Import of an image takes at most; 0 where that is known
// already.
func (s *Store) SizeOfImport(ctx context.Context, in Import) (int64, error) {
	compress, err := compression(in.Compress)
	if err != nil {
		return 0, err
	}
	if print, err := fingerprint(in.Path, in.Format, compress); err != nil {
		return 0, err
	} else if digest, err := s.known(ctx, print); err != nil || digest != "" {
		return 0, err
	}
	n, err := s.images.Content(ctx, in.Path, in.Format, true)
	return stored(n), err
}

// DiskSizes are how many bytes a machine's own layer takes, and an image that needs none
// below it would take at most. Nothing may write to its disk.
func (s *Store) DiskSizes(ctx context.Context, m Machine) (own, whole int64, err error) {
	if m, err = s.ownDisk(ctx, m.ID); err != nil {
		return 0, 0, err
	}
	if err := s.IntactDisk(ctx, m); err != nil { // rather than what reading it says
		return 0, 0, err
	}
	n, err := s.images.Content(ctx, s.Disk(m), "qcow2", false)
	return allocated(s.Disk(m)), stored(n), err
}
