package catalog

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestResumeOfChangedFile: servers that do not know If-Range send the rest of
// another file than the one that was begun. Nothing else would notice: there
// is no checksum, and the sizes are the same.
func TestResumeOfChangedFile(t *testing.T) {
	for name, tag := range map[string]func(http.Header, int){
		"ETag":          func(h http.Header, n int) { h.Set("ETag", fmt.Sprintf(`"%d"`, n)) },
		"Last-Modified": func(h http.Header, n int) { h.Set("Last-Modified", fmt.Sprintf("Fri, 02 Jan 2026 03:04:0%d GMT", n)) },
	} {
		images := [][]byte{random(1, 100_000), random(2, 100_000)}
		requests := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			image := images[min(requests, 1)]
			tag(w.Header(), min(requests, 1))
			requests++
			r.Header.Del("If-Range")
			var out http.ResponseWriter = w
			if requests == 1 {
				out = &badWriter{ResponseWriter: w, p: &publisher{}, left: 50_000, cut: true}
			}
			http.ServeContent(out, r, "x.img", time.Time{}, bytes.NewReader(image))
		}))
		t.Cleanup(srv.Close)
		f := &Fetcher{Dir: t.TempDir(), Catalog: List{}, backoff: time.Millisecond}
		res, err := f.Fetch(t.Context(), srv.URL+"/x.img", Options{}, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := os.ReadFile(res.Path)
		if err != nil || !bytes.Equal(got, images[1]) {
			t.Errorf("%s: after %d requests the image is neither the old one nor the new one (%v)", name, requests, err)
		}
		if st, err := os.Stat(filepath.Dir(res.Path)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
	}
}

// TestPartUnasked: a part is not taken for the whole.
func TestPartUnasked(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", "bytes 0-999/5000")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(random(1, 1000))
	}))
	defer srv.Close()
	f := &Fetcher{Dir: t.TempDir(), Catalog: List{}, backoff: time.Millisecond}
	if _, err := f.Fetch(t.Context(), srv.URL+"/x.img", Options{}, nil); err == nil || !strings.Contains(err.Error(), "sends a part") {
		t.Errorf("%v", err)
	}
}
