// An image brought to another size by the nearest pixel, planar and from -1 to 1: the input of the CMP image encoder.
#pragma once

#include "parallel_for.h"

namespace dispose_rt {

// Row: a line of one channel. Columns: pixels along x.
struct NearestImage {
    static constexpr Position kLanes = 4;

    const std::uint8_t* image;    // [.., image_width, 3]
    const std::int32_t* rows;     // [height] line of the image
    const std::int32_t* columns;  // [width] column of the image
    float* pixels;                // [3, height, width]
    Index image_width, height, width;

    DISPOSE_TARGET void operator()(Position row, Span<kLanes> span) const {
        const auto [channel, y] = split(row, height);
        const std::uint8_t* const nearest = image + rows[y] * image_width * 3 + channel;
        const InputLine<std::int32_t, kLanes> from(columns, span);
        OutputLine<float, kLanes> line(pixels + row * width, span);
        span.each([&](Column x) {
            const float unit = static_cast<float>(nearest[Index{3} * from[x]]) / 255.0f;
            line[x] = unit * 2.0f - 1.0f;
        });
        line.store();
    }
};

// Every entry of the tables lies inside the image.
inline Status nearest_image(const std::uint8_t* image,    // [.., image_width, 3]
                            const std::int32_t* rows,     // [height]
                            const std::int32_t* columns,  // [width]
                            float* pixels,                // [3, height, width] -1..1
                            Index image_width, Index height, Index width, Stream stream) {
    const NearestImage resize{image, rows, columns, pixels, image_width, height, width};
    return parallel_for(3 * height, width, stream, resize);
}

}  // namespace dispose_rt
