package catalog

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/lamina-vm/lamina/internal/api"
	"github.com/ulikunitz/xz"
)

// fetch fetches, which must succeed, and checks that the file is that image.
func fetch(t *testing.T, f *Fetcher, ref string, o Options, image []byte) Result {
	t.Helper()
	res, err := f.Fetch(t.Context(), ref, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(res.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, image) {
		t.Fatalf("%s: %d bytes that differ from the %d wanted", res.Path, len(got), len(image))
	}
	if res.Size != int64(len(image)) || res.SHA256 != sha256Hex(image) {
		t.Errorf("%+v", res)
	}
	return res
}

// files are the names in the cache, without locks.
func files(t *testing.T, f *Fetcher) []string {
	t.Helper()
	var out []string
	found, err := filepath.Glob(filepath.Join(f.Dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		if b := filepath.Base(p); b != "lock" {
			out = append(out, b)
		}
	}
	return out
}

func TestCatalogImage(t *testing.T) {
	p := newPublisher(t, 300_000)
	f := p.fetcher(t)
	res := fetch(t, f, "x", Options{}, p.image)
	if !res.Verified || res.Cached || res.Note != "" || res.Entry == nil || res.Entry.User != "joe" || res.Source != p.entry().URL {
		t.Errorf("%+v", res)
	}
	if filepath.Base(res.Path) != imageName {
		t.Errorf("path %s", res.Path)
	}
	if got := files(t, f); !slices.Equal(got, []string{"meta.json", imageName}) {
		t.Errorf("left in the cache: %q", got)
	}
	// The second time the checksum file is all that is asked for.
	before := len(p.requests())
	res = fetch(t, f, "x:1", Options{}, p.image)
	if !res.Verified || !res.Cached {
		t.Errorf("%+v", res)
	}
	if got := p.requests()[before:]; !slices.Equal(got, []string{"GET /SUMS"}) {
		t.Errorf("requests %q", got)
	}
	res = fetch(t, f, "x", Options{Force: true}, p.image)
	if res.Cached || p.count("GET /x.img") != 2 {
		t.Errorf("forced: %+v, %q", res, p.requests())
	}
}

func TestPlainURL(t *testing.T) {
	p := newPublisher(t, 300_000)
	f := p.fetcher(t)
	u := p.URL + "/" + imageName
	res := fetch(t, f, u, Options{}, p.image)
	if res.Verified || res.Entry != nil || !strings.Contains(res.Note, "not verified") {
		t.Errorf("%+v", res)
	}
	if res = fetch(t, f, u, Options{}, p.image); !res.Cached || p.count("GET") != 1 || p.count("HEAD") != 1 {
		t.Errorf("%+v, %q", res, p.requests())
	}
	// A checksum that the cached file has needs no request at all.
	before := len(p.requests())
	if res = fetch(t, f, u, Options{Checksum: "sha256:" + sha256Hex(p.image)}, p.image); !res.Cached || !res.Verified || len(p.requests()) != before {
		t.Errorf("%+v, %q", res, p.requests()[before:])
	}
	res = fetch(t, p.fetcher(t), u, Options{Checksum: "sha512:" + sha512Hex(p.image)}, p.image)
	if !res.Verified {
		t.Errorf("%+v", res)
	}
	// Without HEAD the image is fetched again rather than trusted.
	p.set(func() { p.noHead = true })
	if res = fetch(t, f, u, Options{}, p.image); res.Cached {
		t.Errorf("%+v", res)
	}
}

// A connection that breaks again and again: the download goes on where it was.
func TestResumeAfterCuts(t *testing.T) {
	p := newPublisher(t, 1_000_000)
	p.set(func() { p.cut = 150_000 })
	var events []api.Event
	f := p.fetcher(t)
	res, err := f.Fetch(t.Context(), "x", Options{}, func(e api.Event) { events = append(events, e) })
	if err != nil || !res.Verified {
		t.Fatalf("%+v, %v", res, err)
	}
	if got, err := os.ReadFile(res.Path); err != nil || !bytes.Equal(got, p.image) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := p.count("GET /x.img bytes="); n < 6 || p.bytes() > 1_050_000 {
		t.Errorf("%d resumed requests, %d bytes sent", n, p.bytes())
	}
	last := int64(-1)
	for _, e := range events {
		if e.Step != "download" || e.Current < last || e.Total != 1_000_000 {
			t.Errorf("%+v after %d", e, last)
		}
		last = e.Current
	}
	if last != 1_000_000 {
		t.Errorf("the last event is of %d", last)
	}
}

// A server without ranges: each attempt begins anew, and in the end gives up
// with the reason.
func TestNoRanges(t *testing.T) {
	p := newPublisher(t, 400_000)
	p.set(func() { p.noRange, p.cut = true, 150_000 })
	f := p.fetcher(t)
	_, err := f.Fetch(t.Context(), "x", Options{}, nil)
	if err == nil || !strings.Contains(err.Error(), p.entry().URL) || !strings.Contains(err.Error(), "connection") {
		t.Fatal(err)
	}
	p.set(func() { p.cut = 0 })
	fetch(t, f, "x", Options{}, p.image)
}

// A server that gives nothing to resume by is never resumed.
func TestNoValidator(t *testing.T) {
	for _, etag := range []string{"", `W/"weak"`} {
		p := newPublisher(t, 400_000)
		p.set(func() { p.etag, p.modified, p.cut = etag, time.Time{}, 150_000 })
		f := p.fetcher(t)
		if _, err := f.Fetch(t.Context(), "x", Options{}, nil); err == nil {
			t.Fatal("no error")
		}
		p.set(func() { p.cut = 0 })
		fetch(t, f, "x", Options{}, p.image)
		if n := p.count("GET /x.img bytes="); n != 0 {
			t.Errorf("etag %q: %d ranges asked for", etag, n)
		}
	}
}

// The fetching process is killed; the next one goes on where it stopped.
func TestResumeAfterKill(t *testing.T) {
	if at := os.Getenv("LAMINA_TEST_FETCH"); at != "" {
		f := &Fetcher{Dir: os.Getenv("LAMINA_TEST_DIR")}
		_, err := f.Fetch(context.Background(), at, Options{}, nil)
		t.Fatal("not killed: ", err)
	}
	p := newPublisher(t, 2_000_000)
	p.set(func() { p.pace = 20 * time.Millisecond }) // some 1.2 s in all
	f := p.fetcher(t)
	u := p.URL + "/" + imageName
	cmd := exec.Command(os.Args[0], "-test.run=^TestResumeAfterKill$")
	cmd.Env = append(cmd.Environ(), "LAMINA_TEST_FETCH="+u, "LAMINA_TEST_DIR="+f.Dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	part := ""
	for range 1000 {
		time.Sleep(5 * time.Millisecond)
		found, _ := filepath.Glob(filepath.Join(f.Dir, "*", "part"))
		if len(found) == 1 {
			if st, err := os.Stat(found[0]); err == nil && st.Size() > 500_000 {
				part = found[0]
				break
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if part == "" {
		t.Fatal("the other process did not get on")
	}
	p.set(func() { p.pace = 0 })
	fetch(t, f, u, Options{}, p.image)
	if n := p.count("GET /x.img bytes="); n != 1 {
		t.Errorf("requests %q", p.requests())
	}
}

// After the host lost power, only what was synced is trusted.
func TestPartOfAnotherBoot(t *testing.T) {
	p := newPublisher(t, 500_000)
	p.set(func() { p.cut = 300_000 })
	f := p.fetcher(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	onImage := func() {
		if p.count("GET /x.img") > 1 {
			cancel(errors.New("enough"))
		}
	}
	p.set(func() { p.onImage = onImage })
	if _, err := f.Fetch(ctx, "x", Options{}, nil); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Fatal(err)
	}
	state, err := filepath.Glob(filepath.Join(f.Dir, "*", "part.json"))
	if err != nil || len(state) != 1 {
		t.Fatal(state, err)
	}
	var s partState
	if err := readJSON(state[0], &s); err != nil {
		t.Fatal(err)
	}
	s.Boot, s.Synced = "another", 100_000
	if err := writeJSON(state[0], s); err != nil {
		t.Fatal(err)
	}
	// Zeros where data was, as a file system may leave them.
	part := strings.TrimSuffix(state[0], ".json")
	if err := os.Truncate(part, 100_000); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(part, 300_000); err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.cut, p.onImage = 0, nil })
	before := len(p.requests())
	fetch(t, f, "x", Options{}, p.image)
	if got := p.requests()[before:]; !slices.Contains(got, "GET /x.img bytes=100000-") {
		t.Errorf("requests %q", got)
	}
}

func TestWrongChecksum(t *testing.T) {
	p := newPublisher(t, 100_000)
	f := p.fetcher(t)
	for _, tc := range []struct {
		ref string
		o   Options
	}{
		{"x", Options{}},
		{p.URL + "/" + imageName, Options{Checksum: "sha512:" + b128}},
	} {
		p.set(func() { p.sums = b64 + "  " + imageName + "\n" })
		_, err := f.Fetch(t.Context(), tc.ref, tc.o, nil)
		if err == nil || !strings.Contains(err.Error(), "should be sha") || !strings.Contains(err.Error(), "not kept") || !strings.Contains(err.Error(), p.URL) {
			t.Errorf("%v", err)
		}
		if got := files(t, f); len(got) != 0 {
			t.Errorf("left in the cache: %q", got)
		}
	}
	// A part that does not fit is thrown away once by itself.
	p.set(func() { p.sums, p.cut = sha256Hex(p.image)+"  "+imageName+"\n", 40_000 })
	ctx, cancel := context.WithCancel(t.Context())
	onImage := func() {
		if p.count("GET /x.img bytes=") > 0 {
			cancel()
		}
	}
	p.set(func() { p.onImage = onImage })
	if _, err := f.Fetch(ctx, "x", Options{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	parts, _ := filepath.Glob(filepath.Join(f.Dir, "*", "part"))
	if len(parts) != 1 {
		t.Fatal(parts)
	}
	if err := os.WriteFile(parts[0], make([]byte, 50_000), 0o644); err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.cut, p.onImage = 0, nil })
	fetch(t, f, "x", Options{}, p.image)
}

// The publisher replaces the image: a cached copy, and the part of one, are of
// the old one.
func TestChangedUnderTheSameURL(t *testing.T) {
	p := newPublisher(t, 300_000)
	f := p.fetcher(t)
	u := p.URL + "/" + imageName
	fetch(t, f, "x", Options{}, p.image)
	replace := func(seed uint64, etag string) {
		p.set(func() {
			p.image, p.etag, p.cut = random(seed, 250_000), etag, 0
			p.modified = p.modified.Add(time.Hour)
			p.sums = sha256Hex(p.image) + "  " + imageName + "\n"
		})
	}
	replace(2, `"two"`)
	if res := fetch(t, f, "x", Options{}, p.image); res.Cached || !res.Verified {
		t.Errorf("catalog: %+v", res)
	}
	other := p.fetcher(t)
	fetch(t, other, u, Options{}, p.image)
	replace(3, `"three"`)
	if res := fetch(t, other, u, Options{}, p.image); res.Cached {
		t.Errorf("URL: %+v", res)
	}
	// Changed between two attempts of one download.
	onImage := func() {
		if p.count("GET /x.img bytes=") == 1 {
			replace(4, `"four"`)
		}
	}
	p.set(func() { p.cut, p.onImage, p.log = 100_000, onImage, nil })
	res, err := other.Fetch(t.Context(), u, Options{Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(res.Path); err != nil || !bytes.Equal(got, random(4, 250_000)) {
		t.Errorf("a mix of two images? %d bytes, %v", len(got), err)
	}
}

// A "latest" image is replaced after its checksum was read.
func TestReplacedWhileFetched(t *testing.T) {
	p := newPublisher(t, 100_000)
	f := p.fetcher(t)
	next := random(7, 100_000)
	onImage := func() {
		p.set(func() { p.image, p.etag, p.sums = next, `"next"`, sha256Hex(next)+"  "+imageName+"\n" })
	}
	p.set(func() { p.onImage = onImage })
	p.set(func() { p.image = next }) // what the handler has taken by then
	if res := fetch(t, f, "x", Options{}, next); !res.Verified {
		t.Errorf("%+v", res)
	}
}

func TestOffline(t *testing.T) {
	for _, ref := range []string{"x", "URL"} {
		p := newPublisher(t, 100_000)
		f := p.fetcher(t)
		if ref == "URL" {
			ref = p.URL + "/" + imageName
		}
		fetch(t, f, ref, Options{}, p.image)
		p.set(func() { p.status = slices.Repeat([]int{503}, 20) })
		if res := fetch(t, f, ref, Options{}, p.image); !res.Cached || !strings.Contains(res.Note, "cached copy") || !strings.Contains(res.Note, "503") {
			t.Errorf("server in trouble: %+v", res)
		}
		p.Close()
		if res := fetch(t, f, ref, Options{}, p.image); !res.Cached || !strings.Contains(res.Note, "cached copy") {
			t.Errorf("server gone: %+v", res)
		}
		f.Dir = t.TempDir()
		if _, err := f.Fetch(t.Context(), ref, Options{}, nil); err == nil || !strings.Contains(err.Error(), p.URL) {
			t.Errorf("nothing cached: %v", err)
		}
	}
}

// Many at once, by fetchers that know nothing of each other: one download.
func TestConcurrentPulls(t *testing.T) {
	p := newPublisher(t, 500_000)
	p.set(func() { p.pace = 5 * time.Millisecond })
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	waited := 0
	for range 5 {
		wg.Go(func() {
			f := p.fetcher(t)
			f.Dir = dir
			res, err := f.Fetch(t.Context(), "x", Options{}, func(e api.Event) {
				if strings.Contains(e.Text, "another process") {
					mu.Lock()
					waited++
					mu.Unlock()
				}
			})
			if err != nil || !res.Verified {
				t.Errorf("%+v, %v", res, err)
			}
		})
	}
	wg.Wait()
	if n := p.count("GET /x.img"); n != 1 || waited == 0 {
		t.Errorf("%d downloads, %d waited", n, waited)
	}
}

func TestRefused(t *testing.T) {
	p := newPublisher(t, 100_000)
	u := p.URL + "/" + imageName
	empty := filepath.Join(t.TempDir(), "empty.img")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, ref, want string
		prepare         func()
	}{
		{"web page", u, "web page", func() { p.image = []byte("\n<!DOCTYPE html><html><body>Please log in</body></html>") }},
		{"empty", u, "empty", func() { p.image = nil }},
		{"not found", u, "404", func() { p.status = []int{404} }},
		{"forbidden", u, "login", func() { p.status = []int{403} }},
		{"always in trouble", u, "tried 6 times", func() { p.status = slices.Repeat([]int{500}, 20) }},
		{"no checksum file", "x", "without the publisher's checksum", func() { p.status = []int{404} }},
		{"not in the checksum file", "x", "no checksum of x.img", func() { p.sums = a64 + "  y.img\n" }},
		{"scheme", "ftp://example.org/x.img", `"ftp"`, nil},
		{"no host", "http:///x.img", "no host", nil},
		{"file URL of another host", "file://other/x.img", "file:///PATH", nil},
		{"no such name", "debain", "a file of that name is not there either", nil},
		{"no such file", "/none/x.img", "/none/x.img", nil},
		{"folder", os.TempDir(), "folder", nil},
		{"empty file", empty, "empty", nil},
		{"empty file by URL", "file://" + empty, "empty", nil},
		{"nothing", "", "no image is named", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.set(func() {
				p.image, p.status = random(1, 100_000), nil
				p.sums = sha256Hex(p.image) + "  " + imageName + "\n"
				if tc.prepare != nil {
					tc.prepare()
				}
			})
			f := p.fetcher(t)
			_, err := f.Fetch(t.Context(), tc.ref, Options{}, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want %q in it", err, tc.want)
			}
			if list, err := os.ReadDir(f.Dir); err != nil || len(list) > 0 {
				t.Errorf("left: %v, %v, %v", list, files(t, f), err)
			}
		})
	}
	if _, err := p.fetcher(t).Fetch(t.Context(), u, Options{Checksum: "md5:1"}, nil); err == nil {
		t.Error("an MD5 was taken")
	}
}

// TestNothingLeftAtOnce: whoever finds nothing removes the folder that others wait for.
func TestNothingLeftAtOnce(t *testing.T) {
	p := newPublisher(t, 100_000)
	u := p.URL + "/" + imageName
	f := p.fetcher(t)
	p.set(func() { p.status = slices.Repeat([]int{404}, 6) })
	var group sync.WaitGroup
	var found atomic.Int32
	for range 12 {
		group.Go(func() {
			switch res, err := f.Fetch(t.Context(), u, Options{}, nil); {
			case err == nil:
				found.Add(1)
				if b, err := os.ReadFile(res.Path); err != nil || !bytes.Equal(b, p.image) {
					t.Errorf("%d bytes, %v", len(b), err)
				}
			case !strings.Contains(err.Error(), "404"):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if found.Load() != 6 {
		t.Errorf("%d of 12 found the image, 6 were told that there is none", found.Load())
	}
}

// Trouble that passes is waited out.
func TestRetriesTrouble(t *testing.T) {
	p := newPublisher(t, 100_000)
	p.set(func() { p.status = []int{503, 429} })
	fetch(t, p.fetcher(t), "x", Options{}, p.image)
	p.set(func() { p.status = []int{503, 500, 408, 429, 502} })
	fetch(t, p.fetcher(t), p.URL+"/"+imageName, Options{}, p.image)
}

// An image that cannot fit is refused before a byte of it is fetched.
func TestTooLargeForTheDisk(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1125899906842624")
		_, _ = w.Write(make([]byte, 1000))
	}))
	defer s.Close()
	f := &Fetcher{Dir: t.TempDir()}
	_, err := f.Fetch(t.Context(), s.URL+"/x.img", Options{}, nil)
	if err == nil || !strings.Contains(err.Error(), "MiB free") || !strings.Contains(err.Error(), "LAMINA_HOME") {
		t.Errorf("%v", err)
	}
}

// From https to http: only with a checksum that comes from elsewhere.
func TestDowngrade(t *testing.T) {
	p := newPublisher(t, 100_000)
	s := httptest.NewTLSServer(http.RedirectHandler(p.URL+"/"+imageName, http.StatusFound))
	defer s.Close()
	f := p.fetcher(t)
	f.Client = s.Client()
	u := s.URL + "/" + imageName
	if _, err := f.Fetch(t.Context(), u, Options{}, nil); err == nil || !strings.Contains(err.Error(), "give a checksum") {
		t.Errorf("%v", err)
	}
	fetch(t, f, u, Options{Checksum: "sha256:" + sha256Hex(p.image)}, p.image)
}

// TestCircle: a server that sends in a circle is asked once, and named as the cause.
func TestCircle(t *testing.T) {
	asked := 0
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, s.URL+"/other/"+imageName, http.StatusFound)
	}))
	defer s.Close()
	f := &Fetcher{Dir: t.TempDir(), Client: s.Client()}
	_, err := f.Fetch(t.Context(), s.URL+"/"+imageName, Options{}, nil)
	if err == nil || !strings.Contains(err.Error(), "from one address to the next") || strings.Contains(err.Error(), "proxy") {
		t.Errorf("%v", err)
	}
	if asked > 12 {
		t.Errorf("%d requests", asked)
	}
}

func TestLocalFiles(t *testing.T) {
	image := random(5, 100_000)
	path := filepath.Join(t.TempDir(), "a b.img")
	if err := os.WriteFile(path, image, 0o644); err != nil {
		t.Fatal(err)
	}
	f := &Fetcher{Dir: t.TempDir()}
	for _, ref := range []string{path, "file://" + path, "file://localhost" + strings.ReplaceAll(path, " ", "%20")} {
		res, err := f.Fetch(t.Context(), ref, Options{}, nil)
		if err != nil || res.Path != path || res.Source != path || res.Size != 100_000 || res.Verified || res.SHA256 != "" {
			t.Errorf("%s: %+v, %v", ref, res, err)
		}
	}
	res := fetch(t, f, path, Options{Checksum: "sha512:" + sha512Hex(image)}, image)
	if !res.Verified {
		t.Errorf("%+v", res)
	}
	if _, err := f.Fetch(t.Context(), path, Options{Checksum: "sha256:" + a64}, nil); err == nil || !strings.Contains(err.Error(), sha256Hex(image)) {
		t.Errorf("%v", err)
	}
	t.Chdir(filepath.Dir(path))
	if res, err := f.Fetch(t.Context(), "a b.img", Options{}, nil); err != nil || res.Path != path {
		t.Errorf("relative: %+v, %v", res, err)
	}
	if got := files(t, f); len(got) != 0 {
		t.Errorf("a local file left %q in the cache", got)
	}
}

// compressions of an image with holes.
func compressed(t *testing.T, image []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	var g, z, x bytes.Buffer
	gw := gzip.NewWriter(&g)
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{gw, zw, xw} {
		if _, err := w.Write(image); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	out[".gz"], out[".zst"], out[".xz"] = g.Bytes(), z.Bytes(), x.Bytes()
	return out
}

func TestCompressed(t *testing.T) {
	image := append(append(random(6, 200_000), make([]byte, 1<<20)...), random(7, 100)...)
	image = append(image, make([]byte, 100_000)...)
	for ending, packed := range compressed(t, image) {
		t.Run(ending, func(t *testing.T) {
			p := newPublisher(t, 1)
			p.set(func() { p.image = packed })
			p.set(func() { p.sums = sha256Hex(packed) + "  disk.raw" + ending + "\n" })
			e := p.entry()
			e.URL = p.URL + "/disk.raw" + ending
			f := &Fetcher{Dir: t.TempDir(), Catalog: List{e}, backoff: time.Millisecond}
			res := fetch(t, f, "x", Options{}, image)
			if !res.Verified || filepath.Base(res.Path) != "disk.raw" {
				t.Errorf("%+v", res)
			}
			if res = fetch(t, f, "x", Options{}, image); !res.Cached {
				t.Errorf("%+v", res)
			}
			if got := files(t, f); !slices.Equal(got, []string{"disk.raw", "meta.json"}) {
				t.Errorf("left in the cache: %q", got)
			}
			st, err := os.Stat(res.Path)
			if err != nil {
				t.Fatal(err)
			}
			if used := allocated(st); used > 500_000 {
				t.Errorf("takes %d bytes of disk", used)
			}

			// The same as a local file, whole and cut.
			local := filepath.Join(t.TempDir(), "disk.raw"+ending)
			if err := os.WriteFile(local, packed, 0o644); err != nil {
				t.Fatal(err)
			}
			fetch(t, f, local, Options{}, image)
			if res = fetch(t, f, local, Options{}, image); !res.Cached {
				t.Errorf("local: %+v", res)
			}
			if err := os.WriteFile(local, packed[:len(packed)-10], 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Fetch(t.Context(), local, Options{}, nil); err == nil || !strings.Contains(err.Error(), "decompress") {
				t.Errorf("cut: %v", err)
			}
		})
	}
	from := filepath.Join(t.TempDir(), "x.gz")
	if err := os.WriteFile(from, compressed(t, image)[".gz"], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := decompress(t.Context(), from, from+".out", ".gz", 1_000_000, func(int64) {}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("no bound: %v", err)
	}
}

// What somebody changed in the cache is not used.
func TestCacheIsNotTrustedBlindly(t *testing.T) {
	p := newPublisher(t, 100_000)
	f := p.fetcher(t)
	res := fetch(t, f, "x", Options{}, p.image)
	for _, spoil := range []func() error{
		func() error { return os.WriteFile(res.Path, random(9, 100_000), 0o644) },
		func() error { return os.Truncate(res.Path, 10) },
		func() error { return os.Remove(res.Path) },
		func() error {
			return os.WriteFile(filepath.Join(filepath.Dir(res.Path), "meta.json"), []byte("{"), 0o644)
		},
	} {
		time.Sleep(2 * time.Millisecond) // a file system's clock
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if res := fetch(t, f, "x", Options{}, p.image); res.Cached {
			t.Error("used as it was")
		}
	}
}

func TestFileNames(t *testing.T) {
	for in, want := range map[string]string{
		"http://h/a/disk.qcow2?x=1": "disk.qcow2", "http://h/": "image", "http://h/..": "image", "http://h/.x.gz": "x",
		"http://h/a%2Fb%20c.img": "b_c.img", "http://h/.gz": "gz", "http://h/d.raw.XZ": "d.raw",
	} {
		s, err := sourceURL(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.fileName(); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
		if strings.ContainsAny(s.folder(), "/\x00") {
			t.Errorf("folder %q", s.folder())
		}
	}
	secret, err := sourceURL("https://joe:pass@h/x.img")
	if err != nil || strings.Contains(secret.String(), "pass@") {
		t.Errorf("%s, %v", secret, err)
	}
}
