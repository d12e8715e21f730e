package catalog

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// publisher is a web server with one image and its checksum file, which can be
// told to behave badly. Its fields are guarded by mu; change them with set.
type publisher struct {
	*httptest.Server
	mu       sync.Mutex
	image    []byte
	etag     string // "" sends none
	modified time.Time
	sums     string        // the checksum file
	cut      int           // bytes of each answer before the connection breaks; 0 never
	pace     time.Duration // for each 32 KiB
	status   []int         // answers before the real one, one a request
	noRange  bool
	noHead   bool
	onImage  func() // called with each GET of the image

	log  []string // requests: "GET /x.img bytes=100-"
	sent int64    // bytes of the image
}

const imageName = "x.img"

func newPublisher(t *testing.T, size int) *publisher {
	t.Helper()
	p := &publisher{image: random(1, size), etag: `"one"`, modified: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	p.sums = sha256Hex(p.image) + "  " + imageName + "\n"
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func random(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return b
}

func sha256Hex(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
func sha512Hex(b []byte) string { s := sha512.Sum512(b); return hex.EncodeToString(s[:]) }

func (p *publisher) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *publisher) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.log...)
}

// bytes is how much of the image was sent.
func (p *publisher) bytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// count is how many requests begin like that.
func (p *publisher) count(prefix string) int {
	n := 0
	for _, r := range p.requests() {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (p *publisher) entry() api.CatalogEntry {
	return api.CatalogEntry{Name: "x:1", Aliases: []string{"x"}, URL: p.URL + "/" + imageName, ChecksumURL: p.URL + "/SUMS", User: "joe"}
}

// fetcher makes one with its own cache and no patience.
func (p *publisher) fetcher(t *testing.T) *Fetcher {
	return &Fetcher{Dir: t.TempDir(), Catalog: List{p.entry()}, backoff: time.Millisecond}
}

func (p *publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.log = append(p.log, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.Path, r.Header.Get("Range"))))
	image, etag, modified, sums, cut, pace := p.image, p.etag, p.modified, p.sums, p.cut, p.pace
	noRange, noHead, onImage := p.noRange, p.noHead, p.onImage
	status := 0
	if len(p.status) > 0 {
		status, p.status = p.status[0], p.status[1:]
	}
	p.mu.Unlock()
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	if r.URL.Path == "/SUMS" {
		_, _ = w.Write([]byte(sums))
		return
	}
	if r.Method == http.MethodHead && noHead {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if r.Method == http.MethodGet && onImage != nil {
		onImage()
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	if noRange {
		r.Header.Del("Range")
	}
	http.ServeContent(&badWriter{ResponseWriter: w, p: p, left: cut, cut: cut > 0, pace: pace}, r, r.URL.Path, modified, bytes.NewReader(image))
}

// badWriter breaks the connection after some bytes, or is slow.
type badWriter struct {
	http.ResponseWriter
	p    *publisher
	left int
	cut  bool
	pace time.Duration
}

func (w *badWriter) Write(b []byte) (int, error) {
	if w.cut && len(b) > w.left {
		_, _ = w.ResponseWriter.Write(b[:w.left])
		w.p.set(func() { w.p.sent += int64(w.left) })
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	w.left -= len(b)
	if w.pace > 0 {
		time.Sleep(w.pace)
	}
	n, err := w.ResponseWriter.Write(b)
	w.p.set(func() { w.p.sent += int64(n) })
	if w.pace > 0 {
		w.ResponseWriter.(http.Flusher).Flush()
	}
	return n, err
}
