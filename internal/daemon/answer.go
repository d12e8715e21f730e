package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// maxRequest is the largest request body: user-data of a seed is what makes
// one large.
const maxRequest = 16 << 20

// clientPatience is how long a client may take to accept an event or a piece
// of a log before it is cut off.
const clientPatience = 10 * time.Second

// apiError gives an error its code.
func apiError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	code := api.CodeFailed
	switch {
	case errors.Is(err, store.ErrNotFound):
		code = api.CodeNotFound
	case errors.Is(err, store.ErrExists):
		code = api.CodeExists
	case errors.Is(err, store.ErrInUse):
		code = api.CodeInUse
	case errors.Is(err, store.ErrInvalid), errors.Is(err, names.ErrInvalid), errors.Is(err, vm.ErrNotRunning):
		code = api.CodeInvalid
	}
	return &api.Error{Code: code, Message: err.Error()}
}

func status(e *api.Error) int {
	switch e.Code {
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeExists, api.CodeInUse:
		return http.StatusConflict
	case api.CodeInvalid:
		return http.StatusBadRequest
	case api.CodeNoSpace:
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, err error) {
	e := apiError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status(e))
	_ = json.NewEncoder(w).Encode(e) // the client is gone: nobody to tell
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}

// request reads a request's body. An empty one is the zero value; a field
// that is not known is an error rather than a wish that nobody fulfils.
func request[T any](w http.ResponseWriter, r *http.Request) (v T, err error) {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	err = dec.Decode(&v)
	if errors.Is(err, io.EOF) {
		return v, nil
	}
	if err == nil && dec.More() {
		err = errors.New("more than one JSON value")
	}
	if err != nil {
		return v, api.Errorf(api.CodeInvalid, "request: %v", err)
	}
	return v, nil
}

// events is a stream of events to one client. Its methods are safe for
// concurrent use. A client that is gone, or does not read, is forgotten; the
// operation goes on or ends by its context.
type events struct {
	mu     sync.Mutex
	w      http.ResponseWriter
	ctl    *http.ResponseController
	broken bool
	told   map[string]bool // warnings
	next   time.Time       // no progress before
}

func newEvents(w http.ResponseWriter) *events {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &events{w: w, ctl: http.NewResponseController(w), told: make(map[string]bool)}
}

// send passes an event on. A warning is told once a stream.
func (s *events) send(e api.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Warning != "" {
		if s.told[e.Warning] {
			return
		}
		s.told[e.Warning] = true
	}
	s.write(e)
}

// progress passes on how far a step is, at most some ten times a second.
func (s *events) progress(e api.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Before(s.next) && e.Current != e.Total && e.Warning == "" {
		return
	}
	s.next = now.Add(100 * time.Millisecond)
	s.write(e)
}

// done ends the stream.
func (s *events) done(result any, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := api.Event{Done: true}
	if err == nil {
		e.Result, err = json.Marshal(result)
	}
	if err != nil {
		e.Error = apiError(err)
	}
	s.write(e)
}

func (s *events) write(e api.Event) {
	if s.broken {
		return
	}
	b, err := json.Marshal(e)
	if err == nil {
		err = s.ctl.SetWriteDeadline(time.Now().Add(clientPatience))
	}
	if err == nil {
		_, err = s.w.Write(append(b, '\n'))
	}
	if err == nil {
		err = s.ctl.Flush()
	}
	s.broken = err != nil
}

// cause is why ctx ended, in words for the client.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return ctx.Err()
}
