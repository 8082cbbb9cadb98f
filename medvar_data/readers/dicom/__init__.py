"""DICOM: what headers say, which images make a volume, pixels, segmentations and structure sets.

`headers` reads the whitelisted attributes of a file, with `contrasts` that can set volumes apart; `screening` leaves out what is no
scan; `volumes` splits the images of a series into volumes and places them; `pixels` decodes; `structures` paints SEG objects and
RTSTRUCT regions onto an image's grid, `contours` makes masks of the latter. Nothing here knows a collection's folders.
"""
