package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
)

// Repack makes a template of another one: a whole image of what it shows, stored as
// in.Compress says. Where nothing would differ it is the same template, by one more
// name. Without in.Name it is called after the other one. in's Path, Format and Source are
// not used.
func (s *Store) Repack(ctx context.Context, ref string, in Import, progress func(done, total int64)) (t api.Template, err error) {
	from, err := s.Template(ctx, ref)
	if err != nil {
		return t, err
	}
	what := "import of template " + ref
	if in.Name != "" {
		if err := names.CheckTemplate(in.Name); err != nil {
			return t, fmt.Errorf("%s: %w: %w", what, ErrInvalid, err)
		}
	}
	if in.Compress, err = compression(in.Compress); err == nil {
		err = s.Intact(ctx, from.Digest)
	}
	if err != nil {
		return t, fmt.Errorf("%s: %w", what, err)
	}
	called := cmp.Or(from.Name, from.Digest[:min(12, len(from.Digest))])
	in.Source, in.Suggest = "template "+called, called+"-"+in.Compress
	tmp, err := s.temporary(s.home.Templates())
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, s.removeTemporary(tmp)) }()
	s.step("repack converted")
	if err := s.images.Convert(ctx, s.layerPath(from.Digest, from.Parent), tmp, ConvertOptions{Compress: in.Compress}, progress); err != nil {
		return t, fmt.Errorf("%s: %w", what, err)
	}
	n := newLayer{kind: api.LayerTemplate, source: in.Source, size: from.VirtualSize, user: cmp.Or(in.User, from.User),
		compress: in.Compress, info: from.Info, at: time.Now()}
	return s.publishLayer(ctx, tmp, n, func(ctx context.Context, tx *sql.Tx, digest string) (string, error) {
		name, err := s.giveName(ctx, tx, digest, in)
		if err != nil {
			return "", fmt.Errorf("%s: %w", what, err)
		}
		return name, nil
	})
}
