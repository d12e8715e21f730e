module github.com/lamina-vm/lamina

go 1.26
