package catalog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How a transfer is carried on.
const (
	attempts    = 6                // in a row without a byte more
	idleLimit   = 60 * time.Second // without a byte: the connection is dead
	syncEvery   = 64 << 20         // bytes
	maxBackoff  = 20 * time.Second
	reportEvery = 100 * time.Millisecond
	userAgent   = "lamina"
)

// transfer fetches one URL into a slot's part, and goes on where an earlier
// one stopped.
type transfer struct {
	client  *http.Client
	src     source
	slot    *slot
	algo    string // of the checksum to verify, besides SHA-256
	report  func(done, total int64)
	backoff time.Duration // before the second attempt; doubled each time

	state   partState
	file    *os.File
	size    int64 // of the part
	hashes  map[string]hash.Hash
	resumed bool // the part holds bytes of an earlier call
}

// statusError is an answer that is no image.
type statusError struct {
	url    string
	status int
	text   string
	after  time.Duration // Retry-After
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: the server answers %d %s%s", e.url, e.status, http.StatusText(e.status), e.text)
}

// transient says whether the same request may succeed later.
func (e *statusError) transient() bool {
	return e.status >= 500 && e.status != http.StatusNotImplemented || e.status == http.StatusTooManyRequests || e.status == http.StatusRequestTimeout
}

func newStatusError(u string, res *http.Response) *statusError {
	e := &statusError{url: u, status: res.StatusCode}
	switch res.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		e.text = ": the image is not there (any more); look at the publisher's page for the new address"
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		e.text = ": it wants a login; give it in the URL, or download the file and use its path"
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		e.after = min(time.Duration(s)*time.Second, time.Minute)
	}
	return e
}

// errWebPage is HTML where an image was expected.
var errWebPage = errors.New("the server answers with a web page instead of an image: the address is not the file's own, or a login page of the network is in between")

// run fetches until the part is whole.
func (t *transfer) run(ctx context.Context) error {
	if err := t.openPart(); err != nil {
		return err
	}
	defer func() { _ = t.file.Close() }() // synced below
	failed := 0
	for {
		before := t.size
		err := t.attempt(ctx)
		if err == nil {
			if t.size == 0 {
				return fmt.Errorf("%s: the file is empty", t.src)
			}
			return t.sync()
		}
		if ctx.Err() != nil {
			return errors.Join(t.sync(), context.Cause(ctx))
		}
		var status *statusError
		var sent *redirectError
		if errors.As(err, &status) && !status.transient() || errors.As(err, &sent) || errors.Is(err, errWebPage) || isLocal(err) {
			return err
		}
		if t.size > before {
			failed = 0
		}
		if failed++; failed == attempts {
			return fmt.Errorf("%w (tried %d times; what is there is kept: try again to go on)", err, failed)
		}
		wait := min(t.backoff<<(failed-1), maxBackoff)
		wait += rand.N(wait/4 + 1)
		if status != nil {
			wait = max(wait, status.after)
		}
		select {
		case <-ctx.Done():
			return errors.Join(t.sync(), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// localError is a failure of our own disk, which no other attempt mends.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

func isLocal(err error) bool {
	var l *localError
	return errors.As(err, &l)
}

// openPart opens the part, and keeps of it what can be trusted.
func (t *transfer) openPart() error {
	file, err := os.OpenFile(t.slot.part(), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	t.file = file
	st, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	t.size = st.Size()
	var s partState
	switch err := readJSON(t.slot.partState(), &s); {
	case err != nil || s.URL != t.src.String() || s.ETag == "" && s.LastModified == "":
		t.size = 0
	case s.Boot != bootID():
		t.size = min(t.size, s.Synced)
	}
	if s.Total >= 0 && t.size > s.Total {
		t.size = 0
	}
	t.state = s
	if t.size == 0 {
		t.state = partState{Total: -1}
	}
	t.resumed = t.size > 0
	if err := t.rehash(); err != nil {
		return errors.Join(err, file.Close())
	}
	return nil
}

// rehash cuts the part to size and computes its checksums so far.
func (t *transfer) rehash() error {
	if err := t.file.Truncate(t.size); err != nil {
		return err
	}
	t.hashes = map[string]hash.Hash{"sha256": sha256.New()}
	if t.algo != "" {
		t.hashes[t.algo] = newHash(t.algo)
	}
	_, err := io.Copy(t.hashWriter(), io.NewSectionReader(t.file, 0, t.size))
	return err
}

func (t *transfer) hashWriter() io.Writer {
	var ws []io.Writer
	for _, h := range t.hashes {
		ws = append(ws, h)
	}
	return io.MultiWriter(ws...)
}

// restart forgets the part.
func (t *transfer) restart() error {
	t.size, t.resumed = 0, false
	t.state = partState{Total: -1}
	if err := t.rehash(); err != nil {
		return &localError{err}
	}
	return nil
}

// attempt makes one request and reads its answer to the end.
func (t *transfer) attempt(ctx context.Context) error {
	if t.size > 0 && t.size == t.state.Total {
		return nil
	}
	since := validator(t.state.ETag, t.state.LastModified)
	if since == "" && t.size > 0 {
		// Nothing would tell that the rest is of the same file.
		if err := t.restart(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(idleLimit, func() { cancel(fmt.Errorf("%s: no byte came for %v", t.src, idleLimit)) })
	defer idle.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.src.url.String(), nil)
	if err != nil {
		return err
	}
	setHeaders(req)
	if t.size > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", t.size))
		req.Header.Set("If-Range", since)
	}
	res, err := t.client.Do(req)
	if err != nil {
		return because(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if err := t.accept(res); err != nil {
		return err
	}
	return because(ctx, t.copy(res.Body, idle))
}

func setHeaders(req *http.Request) {
	req.Header.Set("User-Agent", userAgent)
	// The bytes as they lie there: sizes, ranges and checksums are of those.
	req.Header.Set("Accept-Encoding", "identity")
}

// validator is what If-Range may name: a strong entity tag, else the time.
func validator(etag, modified string) string {
	if etag != "" && !strings.HasPrefix(etag, "W/") {
		return etag
	}
	return modified
}

// because prefers the reason for which the request was given up.
func because(ctx context.Context, err error) error {
	if err != nil && !isLocal(err) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// accept looks at the head of an answer and gets the part ready for its body.
func (t *transfer) accept(res *http.Response) error {
	switch res.StatusCode {
	case http.StatusPartialContent:
		return t.acceptPart(res)
	case http.StatusRequestedRangeNotSatisfiable:
		if err := t.restart(); err != nil {
			return err
		}
		return fmt.Errorf("%s: the file has become shorter", t.src)
	case http.StatusOK:
	default:
		return newStatusError(t.src.String(), res)
	}
	// The whole file: the first time, or it changed since.
	if err := t.restart(); err != nil {
		return err
	}
	t.state = partState{
		URL: t.src.String(), ETag: res.Header.Get("ETag"), LastModified: res.Header.Get("Last-Modified"),
		Total: res.ContentLength, Boot: bootID(),
	}
	if validator(t.state.ETag, t.state.LastModified) == "" {
		t.state.ETag = "" // a weak tag alone cannot be resumed by
	}
	if err := t.room(); err != nil {
		return err
	}
	if err := writeJSON(t.slot.partState(), t.state); err != nil {
		return &localError{err}
	}
	return nil
}

// acceptPart looks whether a part of a file continues what is there. Servers
// that do not know If-Range send parts of a file that has changed meanwhile.
func (t *transfer) acceptPart(res *http.Response) error {
	same := func(header, had string) bool {
		now := res.Header.Get(header)
		return now == "" || had == "" || now == had
	}
	start, total, ok := contentRange(res.Header.Get("Content-Range"))
	why := ""
	switch {
	case t.size == 0:
		return fmt.Errorf("%s: the server sends a part, asked for all of it", t.src)
	case !ok || start != t.size:
		why = fmt.Sprintf("the server sends another part than was asked for (%q)", res.Header.Get("Content-Range"))
	case t.state.Total >= 0 && total >= 0 && total != t.state.Total, !same("ETag", t.state.ETag), !same("Last-Modified", t.state.LastModified):
		why = "the file has changed since its first part was fetched"
	}
	if why != "" {
		if err := t.restart(); err != nil {
			return err
		}
		return fmt.Errorf("%s: %s", t.src, why)
	}
	t.state.Total = max(t.state.Total, total) // not known until now, if the first answer did not say
	return nil
}

// contentRange reads "bytes 100-199/200"; total is -1 for "*".
func contentRange(s string) (start, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, all, ok2 := strings.Cut(s, "/")
	from, _, ok3 := strings.Cut(span, "-")
	start, err := strconv.ParseInt(from, 10, 64)
	if !ok || !ok2 || !ok3 || err != nil {
		return 0, 0, false
	}
	total = -1
	if all != "*" {
		if total, err = strconv.ParseInt(all, 10, 64); err != nil {
			return 0, 0, false
		}
	}
	return start, total, true
}

// room says at once if the file will not fit, instead of after an hour.
func (t *transfer) room() error {
	var fs syscall.Statfs_t
	if t.state.Total < 0 || syscall.Fstatfs(int(t.file.Fd()), &fs) != nil {
		return nil
	}
	if free := int64(fs.Bavail) * fs.Bsize; t.state.Total > free {
		return &localError{fmt.Errorf("%s: the image takes %d MiB, %s has %d MiB free: free some, or set LAMINA_HOME to a folder on a larger disk: %w", t.src, t.state.Total>>20, t.slot.dir, free>>20, syscall.ENOSPC)}
	}
	return nil
}

// copy appends the body to the part.
func (t *transfer) copy(body io.Reader, idle *time.Timer) error {
	buf := make([]byte, 256<<10)
	w := t.hashWriter()
	unsynced := int64(0)
	for {
		n, rerr := body.Read(buf)
		if n > 0 {
			idle.Reset(idleLimit)
			if t.size == 0 && isWebPage(buf[:n]) {
				return fmt.Errorf("%s: %w", t.src, errWebPage)
			}
			if _, err := t.file.WriteAt(buf[:n], t.size); err != nil {
				return &localError{fullDisk(err, t.slot.dir)}
			}
			_, _ = w.Write(buf[:n]) // a hash never fails
			t.size += int64(n)
			unsynced += int64(n)
			t.report(t.size, t.state.Total)
			if unsynced >= syncEvery {
				unsynced = 0
				if err := t.sync(); err != nil {
					return err
				}
			}
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return fmt.Errorf("%s: the connection broke after %d bytes: %w", t.src, t.size, rerr)
		}
	}
	if t.state.Total >= 0 && t.size != t.state.Total {
		return fmt.Errorf("%s: the connection ended after %d of %d bytes", t.src, t.size, t.state.Total)
	}
	return nil
}

// isWebPage looks at the first bytes: servers send images with any type.
func isWebPage(b []byte) bool {
	return strings.HasPrefix(http.DetectContentType(bytes.TrimSpace(b[:min(512, len(b))])), "text/html")
}

// sync makes the part durable and notes how much of it is.
func (t *transfer) sync() error {
	if err := t.file.Sync(); err != nil {
		return &localError{fullDisk(err, t.slot.dir)}
	}
	t.state.Synced = t.size
	if t.state.URL == "" {
		return nil // nothing has come yet
	}
	if err := writeJSON(t.slot.partState(), t.state); err != nil {
		return &localError{fullDisk(err, t.slot.dir)}
	}
	return nil
}

func fullDisk(err error, dir string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("the disk of the image cache %s is full: free some space and try again, what is fetched is kept: %w", dir, err)
	}
	return err
}
