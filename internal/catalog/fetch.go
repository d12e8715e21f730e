package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// Fetcher keeps images in a folder. Its methods are safe for concurrent use,
// also by several processes on the same folder: each image is fetched by one
// of them, the others wait for it.
type Fetcher struct {
	Dir     string       // the cache folder; made when needed
	Client  *http.Client // nil means one with sane time limits
	Catalog List         // nil means Default

	backoff time.Duration // of the tests; 0 means 1 s
}

// Options are the choices of Fetch.
type Options struct {
	// Checksum, "sha256:HEX" or "sha512:HEX", is required to match the file as
	// it lies at its source if given.
	Checksum string
	// Force fetches again what is in the cache.
	Force bool
}

// Result says where the image is.
type Result struct {
	// PullResult.SHA256 is of the file at Path. It is empty for a local file
	// used where it is, unless a checksum was asked for: reading all of it
	// just for that would double the time of an import.
	api.PullResult
	// Entry is the catalog's, nil where ref was no name of it.
	Entry *api.CatalogEntry
	// Source is the URL or the absolute path that the image came from.
	Source string
	// Note is worth telling, if not empty: a cached copy used while the
	// publisher cannot be reached, an image that nothing was verified by.
	Note string
}

// Fetch brings the image that ref names (a catalog name or alias, an http,
// https or file URL, or a path) to the local disk. A local file is used where
// it is, unless it is compressed (.xz, .gz, .zst), which images in the cache
// never are.
//
// What is in the cache is used again if the publisher's checksum, or else the
// server, says that it is still the same, and when neither can be reached (then
// with a Note). A download that was broken off goes on where it stopped, in
// the next call if need be. A catalog image is checked against its publisher's
// checksum, and nothing that fails a check is kept.
//
// progress, if not nil, is called with Step "download", "verify" or "unpack",
// one call at a time, at most some ten times a second.
func (f *Fetcher) Fetch(ctx context.Context, ref string, o Options, progress func(api.Event)) (Result, error) {
	pin, err := parseSum(o.Checksum)
	if err != nil {
		return Result{}, err
	}
	src, err := f.source(ref)
	if err != nil {
		return Result{}, err
	}
	r := &reporter{to: progress, name: src.name()}
	res := Result{Entry: src.entry, Source: src.String()}
	if src.url == nil {
		err = f.local(ctx, src, pin, r, &res)
	} else {
		err = f.remote(ctx, src, pin, o.Force, r, &res)
	}
	if err != nil {
		return Result{}, err
	}
	return res, nil
}

// reporter passes progress on, not too often.
type reporter struct {
	to   func(api.Event)
	name string
	step string
	last time.Time
}

func (r *reporter) progress(step string, done, total int64) {
	now := time.Now()
	if r.to == nil || step == r.step && done != total && now.Sub(r.last) < reportEvery {
		return
	}
	r.step, r.last = step, now
	r.to(api.Event{Step: step, Text: r.name, Current: done, Total: max(total, 0)})
}

func (r *reporter) tell(step, text string) {
	if r.to != nil {
		r.to(api.Event{Step: step, Text: text})
	}
}

// local answers for a file on this machine.
func (f *Fetcher) local(ctx context.Context, src source, pin sum, r *reporter, res *Result) error {
	st, err := os.Stat(src.path)
	if err != nil {
		return fmt.Errorf("image %w", err)
	}
	switch {
	case st.IsDir():
		return fmt.Errorf("image %s: it is a folder", src.path)
	case st.Mode().IsRegular() && st.Size() == 0:
		return fmt.Errorf("image %s: the file is empty", src.path)
	}
	sums := map[string]string{}
	if pin.algo != "" {
		if sums, err = sumFile(ctx, src.path, pin.algo, r); err != nil {
			return fmt.Errorf("image %s: %w", src.path, err)
		}
		if sums[pin.algo] != pin.hex {
			return fmt.Errorf("image %s: its checksum is %s:%s, not %s as asked for", src.path, pin.algo, sums[pin.algo], pin)
		}
		res.Verified = true
	}
	if compression(src.path) == "" {
		res.Path, res.Size, res.SHA256, res.Cached = src.path, st.Size(), sums["sha256"], true
		return nil
	}
	s, err := f.open(ctx, src, func() { r.tell("unpack", "another process unpacks "+src.name()) })
	if err != nil {
		return err
	}
	defer s.close()
	modified := st.ModTime().UTC().Format(time.RFC3339Nano)
	if m := s.cached(); m != nil && m.LastModified == modified && m.Length == st.Size() {
		res.use(s, *m, true)
		return nil
	}
	m := meta{URL: src.String(), LastModified: modified, Length: st.Size(), FetchedAt: time.Now()}
	m, err = f.unpack(ctx, src, s, src.path, m, r)
	if err != nil {
		return err
	}
	res.use(s, m, false)
	return nil
}

func (res *Result) use(s *slot, m meta, cached bool) {
	res.Path, res.Size, res.SHA256, res.Cached = s.image(), m.Size, m.SHA256, cached
}

// unpack decompresses from into the slot.
func (f *Fetcher) unpack(ctx context.Context, src source, s *slot, from string, m meta, r *reporter) (meta, error) {
	size, err := decompress(ctx, from, s.unpacked(), compression(src.name()), maxImage, func(done int64) { r.progress("unpack", done, 0) })
	if err == nil && size == 0 {
		err = errors.New("the image in it is empty")
	}
	var sums map[string]string
	if err == nil {
		sums, err = sumFile(ctx, s.unpacked(), "sha256", r)
	}
	if err != nil {
		return m, errors.Join(fmt.Errorf("image %s: decompress: %w", src, fullDisk(err, s.dir)), remove(s.unpacked()))
	}
	m.SHA256 = sums["sha256"]
	m, err = s.keep(s.unpacked(), m)
	if err != nil {
		return m, fmt.Errorf("image cache: %w", err)
	}
	return m, nil
}

// sumFile reads a file for its SHA-256 and algo's checksum.
func sumFile(ctx context.Context, path, algo string, r *reporter) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	total := int64(0)
	if st, err := f.Stat(); err == nil {
		total = st.Size()
	}
	hashes := map[string]hash.Hash{"sha256": sha256.New()}
	hashes[algo] = newHash(algo)
	buf := make([]byte, 1<<20)
	for done := int64(0); ; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := f.Read(buf)
		for _, h := range hashes {
			_, _ = h.Write(buf[:n]) // a hash never fails
		}
		done += int64(n)
		r.progress("verify", done, total)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return hexSums(hashes), nil
}

func hexSums(hashes map[string]hash.Hash) map[string]string {
	out := map[string]string{}
	for algo, h := range hashes {
		out[algo] = hex.EncodeToString(h.Sum(nil))
	}
	return out
}

// defaultClient waits for a connection and for the head of an answer, but for
// a body as long as it flows.
var defaultClient = func() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   30 * time.Second,
			ResponseHeaderTimeout: 60 * time.Second,
			ForceAttemptHTTP2:     true,
			IdleConnTimeout:       30 * time.Second,
		},
	}
}

// redirectError is a server that sends where we do not go, which no other attempt mends.
type redirectError struct{ what string }

func (e *redirectError) Error() string { return "the server " + e.what }

// client refuses to be sent from https to http where nothing would notice a
// change on the way: unless checked is true.
func (f *Fetcher) client(checked bool) *http.Client {
	c := f.Client
	if c == nil {
		c = defaultClient()
	}
	own := *c
	before := c.CheckRedirect
	own.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if !checked && via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme == "http" {
			return &redirectError{"sends from https to " + req.URL.Redacted() + ", which anybody on the way could change: give a checksum"}
		}
		if before != nil {
			return before(req, via)
		}
		if len(via) >= 10 {
			return &redirectError{"sends from one address to the next, the 11th being " + req.URL.Redacted() + ": ask whoever runs it for the address of the file itself"}
		}
		return nil
	}
	return &own
}
