package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// remote answers for a URL.
func (f *Fetcher) remote(ctx context.Context, src source, pin sum, force bool, r *reporter, res *Result) error {
	s, err := f.open(ctx, src, func() { r.tell("download", "another process fetches "+src.name()+": waiting for it") })
	if err != nil {
		return err
	}
	defer s.close()

	if m := s.cached(); m != nil && !force {
		fresh, note, err := f.still(ctx, src, m, pin)
		if err != nil {
			return err
		}
		if fresh {
			res.use(s, *m, true)
			same, _ := m.has(pin)
			res.Verified, res.Note = m.Publisher != "" || same, note
			return nil
		}
	}
	want, note, err := f.wanted(ctx, src, pin)
	if err != nil {
		return err
	}
	m, err := f.download(ctx, src, s, want, pin.algo == "", r)
	if err != nil {
		return err
	}
	res.use(s, m, false)
	res.Verified, res.Note = want.algo != "", note
	return nil
}

// still says whether what is cached is what the source has now.
func (f *Fetcher) still(ctx context.Context, src source, m *meta, pin sum) (fresh bool, note string, err error) {
	if pin.algo != "" {
		if same, known := m.has(pin); known {
			return same, "", nil // no need to ask anybody
		}
		return false, "", nil
	}
	offline := func(err error) (bool, string, error) {
		if ctx.Err() != nil {
			return false, "", context.Cause(ctx)
		}
		return true, fmt.Sprintf("the cached copy of %s (of %s) is used: %v", src.name(), m.FetchedAt.Format(time.DateOnly), err), nil
	}
	if src.entry != nil && src.entry.ChecksumURL != "" {
		want, err := f.published(ctx, src)
		if err != nil {
			return offline(err)
		}
		same, _ := m.has(want)
		return same, "", nil
	}
	same, err := f.unchanged(ctx, src, m)
	if err != nil {
		return offline(err)
	}
	return same, "", nil
}

// unchanged asks the server.
func (f *Fetcher) unchanged(ctx context.Context, src source, m *meta) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, src.url.String(), nil)
	if err != nil {
		return false, err
	}
	setHeaders(req)
	if m.ETag != "" {
		req.Header.Set("If-None-Match", m.ETag)
	}
	if m.LastModified != "" {
		req.Header.Set("If-Modified-Since", m.LastModified)
	}
	res, err := f.client(false).Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = res.Body.Close() }()
	switch res.StatusCode {
	case http.StatusNotModified:
		return true, nil
	case http.StatusOK:
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return false, nil // no HEAD here: fetch it
	default:
		return false, newStatusError(src.String(), res)
	}
	// A server that knows no conditions, or a mirror with tags of its own.
	etag, modified := res.Header.Get("ETag"), res.Header.Get("Last-Modified")
	if res.ContentLength >= 0 && res.ContentLength != m.Length {
		return false, nil
	}
	return etag != "" && etag == m.ETag || modified != "" && modified == m.LastModified, nil
}

// wanted is the checksum that the image must have; the zero sum, with a note,
// if there is none.
func (f *Fetcher) wanted(ctx context.Context, src source, pin sum) (sum, string, error) {
	switch {
	case pin.algo != "":
		return pin, "", nil
	case src.entry == nil || src.entry.ChecksumURL == "":
		return sum{}, src.name() + " was not verified: no checksum was given", nil
	}
	want, err := f.published(ctx, src)
	if err != nil {
		return sum{}, "", fmt.Errorf("%w: without the publisher's checksum nothing is fetched; give one yourself, or the image's URL to go without", err)
	}
	return want, "", nil
}

// published fetches the publisher's checksum of a catalog image.
func (f *Fetcher) published(ctx context.Context, src source) (sum, error) {
	at := src.entry.ChecksumURL
	var err error
	for try := range 3 {
		if try > 0 {
			select {
			case <-ctx.Done():
				return sum{}, context.Cause(ctx)
			case <-time.After(f.firstBackoff() << try):
			}
		}
		var text []byte
		if text, err = f.small(ctx, at); err == nil {
			want, err := findSum(text, src.name())
			if err != nil {
				return sum{}, fmt.Errorf("checksum file %s: %w", at, err)
			}
			return want, nil
		}
		var status *statusError
		if ctx.Err() != nil || errors.As(err, &status) && !status.transient() {
			break
		}
	}
	if ctx.Err() != nil {
		return sum{}, context.Cause(ctx)
	}
	return sum{}, fmt.Errorf("checksum file: %w", err)
}

// small fetches a text of at most 1 MiB.
func (f *Fetcher) small(ctx context.Context, at string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	setHeaders(req)
	res, err := f.client(false).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, newStatusError(at, res)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return b, nil
}

func (f *Fetcher) firstBackoff() time.Duration { return cmp.Or(f.backoff, time.Second) }

// download fetches the image into the slot and verifies it. moving says that
// the wanted checksum is the publisher's, which may change while we fetch.
func (f *Fetcher) download(ctx context.Context, src source, s *slot, want sum, moving bool, r *reporter) (meta, error) {
	for again := false; ; again = true {
		t := &transfer{
			client: f.client(want.algo != ""), src: src, slot: s, algo: want.algo, backoff: f.firstBackoff(),
			report: func(done, total int64) { r.progress("download", done, total) },
		}
		if err := t.run(ctx); err != nil {
			if errors.Is(err, errWebPage) || t.size == 0 { // nothing of it is worth keeping
				err = errors.Join(err, s.dropPart())
			}
			return meta{}, wrapDownload(err)
		}
		sums := hexSums(t.hashes)
		publisher := ""
		if want.algo != "" {
			ok, now, err := f.matches(ctx, src, want, sums, moving)
			if err != nil {
				return meta{}, err
			}
			if !ok {
				if err := s.dropPart(); err != nil {
					return meta{}, err
				}
				if t.resumed && !again {
					r.tell("download", "the parts of "+src.name()+" do not fit together: fetching it again")
					continue
				}
				return meta{}, fmt.Errorf("image %s: its checksum is %s:%s, but should be %s: it was damaged or changed on the way, and is not kept; try again, and if it stays so, do not trust this source", src, now.algo, sums[now.algo], now)
			}
			if moving {
				publisher = now.String()
			}
		}
		m := meta{
			URL: src.String(), ETag: t.state.ETag, LastModified: t.state.LastModified, Length: t.size,
			Publisher: publisher, FetchedAt: time.Now(), SHA256: sums["sha256"],
		}
		for algo, value := range sums {
			m.Sums = append(m.Sums, algo+":"+value)
		}
		if compression(src.name()) != "" {
			return f.unpack(ctx, src, s, s.part(), m, r)
		}
		m, err := s.keep(s.part(), m)
		if err != nil {
			return m, fmt.Errorf("image cache: %w", err)
		}
		return m, nil
	}
}

// matches compares with the wanted checksum, and with the publisher's of now if
// that fails: a "latest" image may have been replaced while it was fetched.
func (f *Fetcher) matches(ctx context.Context, src source, want sum, sums map[string]string, moving bool) (bool, sum, error) {
	if sums[want.algo] == want.hex {
		return true, want, nil
	}
	if !moving {
		return false, want, nil
	}
	now, err := f.published(ctx, src)
	if err != nil {
		if ctx.Err() != nil {
			return false, want, context.Cause(ctx)
		}
		return false, want, nil
	}
	if now.algo != want.algo {
		return false, want, nil
	}
	return sums[now.algo] == now.hex, now, nil
}

// wrapDownload says what to do where the network gives no reason of its own.
func wrapDownload(err error) error {
	var sent *redirectError
	if errors.As(err, &sent) {
		return fmt.Errorf("image: %w", err)
	}
	var u *url.Error
	if errors.As(err, &u) && !u.Timeout() && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("image: %w: is the network up, and a proxy set if one is needed (HTTPS_PROXY)?", err)
	}
	return fmt.Errorf("image %w", err)
}
