"""The programs as a page in the browser: `diffusekrona ui`. It needs the extra `ui` (Gradio).

places     which files the page may list, serve and write
uploads    dropped pictures and edited captions, into data/
form       fields from a settings class, and back
jobs       runs as processes of their own: start, queue, stop, resume
runs       what runs in outputs/ have done so far
libraries  what takes seconds to import, read while the page opens
server     the web server: pictures, password, other sites kept out
*_tab      one part of the page each
"""
